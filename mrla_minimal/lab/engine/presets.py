"""Recipes by name: what `mrla train --preset NAME` starts from."""

_ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "warmup_epochs": 0.3}
# The rate was chosen on nuclei's validation images, with the plain net. The crops of a step are 16 tiles.
_DETECTOR = {"batch_size": 16, "optimizer": "adamw", "learning_rate": 6e-3, "weight_decay": 0.05,
             "steps": 480}
PRESETS = {
    "quick": {},
    "standard": {"epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 5e-4,
                 "warmup_epochs": 5.0, "schedule": "cosine"},
    "vit": {"model": "vit", "depth": 12, "dim": 64, "heads": 2, "resolution": 16, "epochs": 4, **_ADAMW},
    "vit-gpu": {"model": "vit", "depth": 12, "dim": 192, "drop_path": 0.1, "epochs": 200, **_ADAMW,
                "batch_size": 128, "warmup_epochs": 10.0, "label_smoothing": 0.1},
    "nuclei": {"dataset": "nuclei", **_DETECTOR, "warmup_epochs": 0.5},
    "blood": {"dataset": "blood", **_DETECTOR, "warmup_epochs": 2.0},
}


def preset_for(given: dict) -> str:
    """The preset to start from if none is named: the own short one of what is trained.

    given: the fields of TrainConfig that are. The recipe of a ResNet trains neither a transformer nor a
    detector.
    """
    own = given.get("dataset"), given.get("model")
    return next((name for name in own if name in PRESETS), "quick")
