"""Do the tests of layer_attention.py notice a mistake? Each mutant is one, and names the test to catch it.

    python tests/tools/mutants.py           all, on a copy of the package: exit status 1 if one is not caught
    python tests/tools/mutants.py softmax   those whose name contains "softmax"

A mutant counts as caught when its test fails in an assertion; one that fails for another reason (a name that
does not exist, text that is no longer in the source) is an error of this list.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
TESTS = TOOLS.parent
PACKAGE = TESTS.parent / "mrla_minimal"
SOURCE = PACKAGE / "layer_attention.py"


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` within one function or class of layer_attention.py; `test` must then fail."""

    name: str
    within: str
    old: str
    new: str
    test: str


GOLDEN_BASE = "test_layer_attention.py::test_base_agrees_with_the_released_code[mrla_base_c16_h4_t4.npz]"
GOLDEN_LIGHT = "test_layer_attention.py::test_light_agrees_with_the_released_code[mrla_light_c32_h4.npz]"
FORMULA_LAYER = "test_layer_attention.py::test_attention_is_its_formula_number_by_number[LayerAttention]"
UNROLLED = "test_layer_attention.py::test_eq_8_is_its_unrolled_sum"
VALUE_OF = "test_layer_attention.py::test_a_memory_is_a_value"
LEARNS = "test_layer_attention.py::test_every_layer_learns_from_all_later_outputs"
CARRY_OF_LIGHT = "lambda_o * carried"

MUTANTS = [
    # Weights: sign, scale, sigmoid and softmax
    Mutant("gate with the sign turned", "MRLALight", "logits.sigmoid()", "(-logits).sigmoid()", GOLDEN_LIGHT),
    Mutant("scale missing", "MRLABase", " / math.sqrt(self.head_dim)", "", GOLDEN_BASE),
    Mutant("scale without its root", "MRLALight", "math.sqrt(self.head_dim)", "self.head_dim", GOLDEN_LIGHT),
    Mutant("softmax for sigmoid", "MRLALight", "logits.sigmoid()", "logits.softmax(dim=-1)", GOLDEN_LIGHT),
    Mutant("sigmoid for softmax", "MRLABase", "logits.softmax(dim=-1)", "logits.sigmoid()", GOLDEN_BASE),
    Mutant("softmax over the heads", "MRLABase", "logits.softmax(dim=-1)", "logits.softmax(dim=1)",
           GOLDEN_BASE),
    Mutant("weights past their identity", "MRLABase", "self.weights(logits.softmax(dim=-1))",
           "logits.softmax(dim=-1)",
           "test_layer_attention.py::test_weights_pass_through_their_identity[MRLABase]"),

    # Heads and axes
    Mutant("heads interleaved", "split_heads", '"batch 1 (heads d) ->', '"batch 1 (d heads) ->', GOLDEN_BASE),
    Mutant("weights to interleaved channels", "per_channel", ".repeat_interleave(head_dim, dim=1)",
           ".repeat(1, head_dim)",
           "test_layer_attention.py::test_channel_c_belongs_to_head_c_div_head_dim[MRLALight]"),
    Mutant("maps transposed", "MRLABase", "self.value(x)", "self.value(x.transpose(2, 3)).transpose(2, 3)",
           GOLDEN_BASE),

    # Query, key, value
    Mutant("query for key", "MRLABase", "self.key(row)", "self.query(row)", GOLDEN_BASE),
    Mutant("query of the first layer", "LayerAttention", "self.query(pool(x))",
           "self.query(pool(features[0]))", FORMULA_LAYER),
    Mutant("keys of the asking layer", "LayerAttention", "self.key(pool(feature.to(x.dtype)))",
           "self.key(pool(x))", FORMULA_LAYER),
    Mutant("features for values", "LayerAttention",
           "[self.value(feature.to(x.dtype)) for feature in features]", "features",
           "test_layer_attention.py::test_first_output_is_the_value[LayerAttention]"),
    Mutant("largest pixel for the mean", "pool", "(sums / (x.shape[2] * x.shape[3]))", "x.amax(dim=(2, 3))",
           GOLDEN_LIGHT),
    Mutant("half precision summed as it is", "pool", ", dtype=torch.promote_types(x.dtype, torch.float32)",
           "",
           "test_conditions.py::test_half_precision_on_large_maps_stays_near_float32[MRLABase-dtype0]"),
    Mutant("channels in a ring", "channel_convolution", "bias=False", 'padding_mode="circular", bias=False',
           GOLDEN_LIGHT),
    Mutant("last layer left out", "weighted_sum", "enumerate(values)", "enumerate(values[:-1] or values)",
           GOLDEN_BASE),

    # Memory
    Mutant("cache appended in place", "MRLABase", "memory = [*(memory or []), (key, value)]",
           "memory = [] if memory is None else memory; memory.append((key, value))", f"{VALUE_OF}[MRLABase]"),
    Mutant("features appended in place", "LayerAttention", "features = [*(memory or []), x]",
           "features = [] if memory is None else memory; features.append(x)", f"{VALUE_OF}[LayerAttention]"),
    Mutant("carried map changed in place", "MRLALight", "carried = value",
           "_ = memory is None or memory.mul_(0.5); carried = value", f"{VALUE_OF}[MRLALight]"),
    Mutant("cache detached", "MRLABase", "for _, value in memory]), memory",
           "for _, value in memory]), [(key.detach(), value.detach()) for key, value in memory]",
           f"{LEARNS}[MRLABase]"),
    Mutant("carried map detached", "MRLALight", "return output, output", "return output, output.detach()",
           f"{LEARNS}[MRLALight]"),
    Mutant("value of x and memory", "MRLALight", "self.value(x)",
           "self.value(x if memory is None else x + memory)", GOLDEN_LIGHT),
    Mutant("cache stacked anew", "weighted_sum", "enumerate(values)",
           "enumerate(torch.stack(values).unbind())",
           "test_conditions.py::test_maps_kept_for_the_backward_pass[6-MRLABase]"),

    # Light's sum
    Mutant("carry dropped", "MRLALight", CARRY_OF_LIGHT, "0 * carried", UNROLLED),
    Mutant("carry not scaled", "MRLALight", CARRY_OF_LIGHT, "carried", UNROLLED),
    Mutant("lambda of the head", "MRLALight", "self.lambda_o.to",
           "self.lambda_o[:: self.head_dim].repeat_interleave(self.head_dim).to", UNROLLED),
    Mutant("gate on the carry too", "MRLALight", CARRY_OF_LIGHT,
           "lambda_o * per_channel(gate[:, :, 0], value) * carried", UNROLLED),
]

# A mutant must meet its own copy, and need not wait for hypothesis to find the smallest example.
CONFTEST = """
import pathlib
import hypothesis
import mrla_minimal
assert pathlib.Path(mrla_minimal.__file__).resolve().parent.parent == pathlib.Path(__file__).resolve().parent
hypothesis.settings.register_profile(
    "mutants", phases=[hypothesis.Phase.generate], report_multiple_bugs=False)
hypothesis.settings.load_profile("mutants")
"""


def mutate(mutant, source):
    """The source with the mistake in it. Raises ValueError unless the old text stands there once."""
    parts = re.split(r"(?m)^(?=class |def )", source)
    homes = [i for i, part in enumerate(parts) if re.match(rf"(class|def) {mutant.within}\b", part)]
    found = [parts[i].count(mutant.old) for i in homes]
    if found != [1]:
        raise ValueError(f"mutant {mutant.name!r}: its old text must stand once in {mutant.within}, "
                         f"in {len(homes)} of that name it stands {sum(found)} times: {mutant.old}")
    parts[homes[0]] = parts[homes[0]].replace(mutant.old, mutant.new)
    return "".join(parts)


def run_tests(source, tests):
    """Tests on a copy of the package with this source: pytest's exit code, what it printed, seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant") as folder:
        copy = Path(folder) / "tools"       # the tools find golden/ beside their folder
        rooms = shutil.ignore_patterns("__pycache__", "lab", "course")
        shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=rooms)
        shutil.copytree(TESTS / "golden", copy.with_name("golden"))
        for module in {TOOLS / "layer_tools.py", *(TESTS / test.partition("::")[0] for test in tests)}:
            shutil.copy(module, copy)
        (copy / "conftest.py").write_text(CONFTEST, encoding="utf-8")
        (copy / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (copy / PACKAGE.name / SOURCE.name).write_text(source, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        environment |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
                        "COLUMNS": "300", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        options = ["-c", "pytest.ini", "-q", "--color=no", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options]
        done = subprocess.run([*command, *tests], cwd=copy, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, time.perf_counter() - start


def try_mutant(mutant):
    """Whether the mutant was caught, and a line that says how."""
    code, printed, seconds = run_tests(mutate(mutant, SOURCE.read_text(encoding="utf-8")), [mutant.test])
    failure = re.search(r"(?m)^FAILED .* - (.*)", printed)
    if code == 0:
        return False, f"SURVIVED  {mutant.name}: {mutant.test} passed"
    if code != 1 or not failure or not failure[1].startswith(("AssertionError", "assert ")):
        reason = f"{mutant.test} did not fail in an assertion\n{printed[-2000:]}"
        return False, f"ERROR     {mutant.name}: {reason}"
    return True, f"caught    {mutant.name}: by {mutant.test.partition('::')[2]} in {seconds:.1f} s"


def try_original():
    """Whether all the named tests pass on an unchanged copy, and a line that says so."""
    tests = sorted({mutant.test for mutant in MUTANTS})
    code, printed, seconds = run_tests(SOURCE.read_text(encoding="utf-8"), tests)
    if code:
        return False, f"ERROR     the unchanged copy fails\n{printed[-2000:]}"
    return True, f"passed    the unchanged copy: all {len(tests)} named tests, in {seconds:.1f} s"


def main(wanted=""):
    mutants = [mutant for mutant in MUTANTS if wanted in mutant.name]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        attempts = [pool.submit(try_original), *(pool.submit(try_mutant, mutant) for mutant in mutants)]
        results = []
        for attempt in attempts:
            fine, line = attempt.result()
            print(line, flush=True)
            results.append(fine)
    print(f"{sum(results[1:])} of {len(mutants)} mutants caught")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
