"""Does it matter what an attention chooses? One trained net, the same images, with its choices taken away."""

from mrla_minimal.lab.data import normalise
from mrla_minimal.lab.training import evaluate
from mrla_minimal.resnet import freeze_attention

INTERVENTIONS = ("mean", "shuffle", "uniform")      # as in freeze_attention
MEAN_OVER = 5000        # training images; their order comes from a hash of their pixels, so the first ones are a random sample


def chooses(model):
    """Whether any layer attention of the model weighs layers, or gates, by what it sees."""
    return any(hasattr(block.layer_attention, "weights") for stage in model.stages for block in stage)


def intervene(model, data, mean_over=MEAN_OVER):
    """Test accuracies (fractions of 1) of a trained model: {"learned", "mean", "shuffle", "uniform"}; None if nothing is chosen.

    learned   as trained, in float32
    mean      each layer and head has its mean weights over the first `mean_over` training images, whatever it sees
    shuffle   each test image gets the weights of another one of its batch of 500
    uniform   1 / t for each of t layers; a gate has its layer's mean over those training images and over heads

    `data` is what load_cifar returns. The test set is opened four times, and nothing is chosen by it.
    """
    if not chooses(model):
        return None
    device = next(model.parameters()).device
    test = data.test.to(device)
    images = normalise(data.train.images[:mean_over].to(device))                             # (mean_over, 3, 32, 32)
    accuracies = {"learned": evaluate(model, test, channels_last=True)[1]}
    for how in INTERVENTIONS:
        with freeze_attention(model, how, images):
            accuracies[how] = evaluate(model, test, channels_last=True)[1]
    return accuracies


def report_interventions(records):
    """A table of intervention records: what each net reaches as learned, and what it loses without its attention's choices."""
    lines = ["what the attention chooses: test accuracy as learned, and the points lost with its choices taken away", "",
             f"{'variant':<20} {'seed':>4} {'learned %':>10} " + " ".join(f"{how:>8}" for how in INTERVENTIONS)]
    for record in sorted(records, key=lambda record: (record["variant"], record["seed"])):
        lost = " ".join(f"{100 * (record[how] - record['learned']):>+8.2f}" for how in INTERVENTIONS)
        lines.append(f"{record['variant']:<20} {record['seed']:>4} {100 * record['learned']:>10.2f} {lost}")
    return "\n".join(lines)
