"""Configs: the defaults, which are also the schema."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from unlearn_jax.registry import name_of

FREE = ("objective_kw", "combine_kw")  # of a phase: as the chosen function's options


def default() -> ConfigDict:
    """Return a config with every key there is. Configs start from it and fill in the rest."""
    from unlearn_jax import sharding  # brings jax, which those who only read records do not need

    return ConfigDict(
        {
            "name": "",  # title of the report
            "seed": 0,  # of everything random
            "stage": "original",  # what train.py runs: a key of `stages`
            "init_from": "",  # workdir of a finished run, where the stage's parameters come from
            "reference_from": "",  # the same of the reference model, if a goal wants one
            "batch_size": 128,  # rows per step over all devices
            # Each batch in so many slices, one after the other: less memory, the same update.
            "accumulate": 1,
            "data": {
                "kind": "tfds",  # "tfds", "records" (of `prepare`), "folder" or "arrays"
                "name": "",  # tfds: name of the dataset; "cifar10_sample" comes with the package
                "data_dir": "",  # tfds: where it was prepared
                "path": "",  # records: their folder; folder: photos, or classes; arrays: a .npz
                "splits": ("train", "test"),
                "train_rows": 0,  # only so many, the same share of each class; 0: all
                "train_seed": 0,  # which ones
                # Pixels, of the model, too: one number for squares, or (height, width).
                "image_size": FieldReference(32, field_type=object),
                # "crop", "pad", "squash_bilinear", "squash_bicubic": see preprocess.fit
                "resize": "none",
                "exif": False,  # turn photos as the camera says; published protocols do not
                "augment": {  # random training views; evaluation never has them
                    "name": "",  # "random_resized_crop"
                    "scale": (0.2, 1.0),  # of the image's area
                    "ratio": (3 / 4, 4 / 3),  # of that area, width / height
                    "flip": True,
                },
                # Order the training images, so that each can be deleted exactly by replaying what
                # came after it entered, see docs/exact.md. Stages from scratch only.
                "slices": {
                    "count": 0,  # 0: off
                    "file": "",  # a table of images; "": by a hash of the id
                    "column": "",  # of the table: the number of the slice or, with bounds, a value
                    "bounds": (),  # of the column: the value at which slice 1, 2, ... begins
                    "last": 0.15,  # share of the steps from the entrance of the last slice on
                    "newest": 0.35,  # share of each batch that is of the newest slice; 0: chance
                },
                "cache": True,  # decode once and keep the pixels in memory
                "num_threads": 1,  # more help only where images are decoded on every step
                "prefetch": 8,  # batches
            },
            "request": {
                "kind": "random",  # "classes", "random", "ids" or "predicate"
                "classes": (),  # classes: names or numbers
                "fraction": 0.1,  # random: of each class
                "seed": 0,  # random, per_class
                "file": "",  # ids: one per line or a table; predicate: rule.py
                "column": "",  # ids: header of the column of images; "": the only one it can be
                "per_class": 0,  # at most so many of each class; 0: all
                "pick": "random",  # "random" (by seed) or "first", if per_class
                # Images elsewhere with the very pixels of a forget image: "refuse" to start,
                # "forget" them, too, or "keep" them.
                "copies": "refuse",
                "near_copies": "",  # a list of near copies that are forgotten, too
                # What the model has forgotten before: known from init_from; of a model that does
                # not say, "none"; for a stage from scratch, the workdir of the model to succeed.
                "served": "",
                # Tell later trainings on these data, in forgotten.json; False for experiments.
                "remember": True,
                "case": "",  # what the receipt calls it
                "due": "",  # day by which it must be done, as 2026-12-31; for the receipt
            },
            "retain": {
                # "complement", "subset", "classes", "other_classes", "ids", "proxy" or "none"
                "kind": "complement",
                "classes": (),  # classes: these; other_classes: all but these and the forgotten
                "file": "",  # ids: as of the request
                "column": "",
                "per_class": 0,  # as of the request
                "pick": "random",
                "fraction": 0.5,  # subset: of each class
                "seed": 0,  # subset, per_class
                "data": {"kind": "", "name": "", "data_dir": "", "path": "", "splits": ("train",)},
            },
            "holdout": {
                # "" reserves rows of the training split instead; "none": there are none.
                "split": "test",
                "fraction": 0.1,  # of each class, if reserved
            },
            "poison": {
                "fraction": 0.0,  # of the forget set that carries a backdoor, for the audit
                "seed": 0,
                # 0: all triggers are alike. Up to 1: each has a contrast from 1 - jitter to 1, and
                # is moved by up to jitter of its side, so that faded and shifted ones work, too.
                "jitter": 0.0,
            },
            "task": {
                "name": "inpaint",  # see transforms.make_mask for the others
                "hole": 0.5,  # inpaint, left, right, up, down: its sides / those of the image
                "visible": 0.5,  # outpaint: sides of the visible centre / those of the image
                "ratio": 0.5,  # random_mask: share of the patches
                "patch": 4,  # random_mask: side of a patch, pixels
                "path": "",  # masks: a black and white image, or a folder of one for each image
                "train": "",  # name of the task while training; "": the same
            },
            "model": {"name": "autoencoder"},  # and the model's own fields
            "stages": {
                # rows: what plays the retain part; scratch: whether it may start without init_from
                "original": {"rows": "train", "phases": ("pretrain",), "scratch": True},
                "unlearned": {"rows": "retain", "phases": ("decouple", "retain"), "scratch": False},
                "retrained": {"rows": "remaining", "phases": ("pretrain",), "scratch": True},
            },
            "phases": {},  # name -> phase(...)
            "certificate": {  # of a stage with a noised phase, see docs/certificate.md
                "delta": 0.0,  # 0: none is issued
                "certifier": "retrain",  # or "reference": as if started from the centre, weaker
                "accountant": "gdp",  # or "reflection": tighter, its proof is unreviewed
                "centre_from": "",  # workdir of public weights; "": the initial parameters
            },
            "probe_rows": 256,  # fixed forget and holdout rows each, measured while training
            "evaluation": {
                "retain_rows": 1000,  # a fixed random choice of that many; forget, holdout: all
                "grid_rows": 8,
                "confidence": 0.95,
                "resamples": 1000,  # of the bootstrap
            },
            "protocol": {  # of `evaluate --checkpoints=…`, see evaluate/protocol.py
                "split": "test",  # whose images are completed
                "retain_classes": (),  # beside request.classes; (): retain.classes, or all others
                "per_class": 0,  # images of each class; 0: all
                "list_file": "",  # a published list of images; "": by class
                "inpaint": (4, 8),  # holes, in sixteenths of the side
                "outpaint": (4, 8),  # borders, both sides together, in sixteenths of the side
                "metrics": ("cifar10_classifier",),  # see protocol.METRICS
                # Workdirs of converted towers, by metric.
                "towers": {
                    "fid": "",
                    "inception_score": "",
                    "places365_score": "",
                    "clip_cosine": "",
                },
                "batch_size": 64,  # over all devices
                "dtype": "",  # of the models' computation: "float32" or "bfloat16"; "": model.dtype
                "shard_size": 512,  # images that an interruption can cost
                "grid_rows": 4,  # images of each set that the page shows
                # How Li et al. did it, where we do otherwise; recorded in the results.
                "compat": {
                    "fid_reference": "center_crop",  # or "original_fullsize", "resaved_gt"
                    "clip_reference": "center_crop",
                    "is_split_order": "shuffled",  # or "class_grouped"
                    "norm_then_flip": False,
                    "image_format": "png",  # or "jpeg_bgr_compat", "jpeg_75_compat"
                },
            },
            "audit": {
                "rows": 2000,  # of each set, at most
                "shadows": 1,  # further retrained models: the floor, and for attacks that compare
                "draws": 8,  # of masks, timesteps or noise for each image, if the model draws any
                "batch_size": 64,  # of training in attacks
                "learning_rate": 3e-4,  # of relearning
                # Training on other images, to see whether forgotten ones come back: every learning
                # rate, on every set, measured after each of these steps. steps=(): not done.
                "resurfacing": {
                    "steps": (50, 200),
                    "learning_rates": (3e-4,),
                    "on": ("retain", "unseen"),  # unseen: the calibration part of the holdout
                },
                "relearn": {
                    "images": 64,  # forget rows to learn again, of each half
                    "steps": 40,  # 0: not done
                    "every": 4,  # steps between measurements
                },
                # Of your own, as "package.module:name": a `Witness`, which counts, or a function
                # (request, params, original) -> number, or a dict of numbers, which are shown.
                "own": (),
            },
            "compare": {
                "seeds": (0, 1, 2),  # of the models; the request has its own
                "models": "",  # where trained models are kept for other requests; "": in workdir
                "methods": {},  # name -> method(...)
                "only": (),  # names of those to compare; (): all
            },
            "report": {
                "pictures": True,  # the page shows images, also those to be forgotten
                "names": True,  # page and receipt name the images that were asked for
            },
            "checkpoint": {"every": 200, "keep": 2},
            "log_every": 20,  # steps between lines of metrics.jsonl
            # Where they go, too: "tensorboard", or "package.module:function" of your own, called
            # with step, {name: number} and images of forget rows (None between probes): what is
            # written of these must go with the forgotten images.
            "log": {"to": ""},
            "mesh": {"data": -1, "fsdp": 1},  # -1: the devices that are left
            "sharding": {  # of parameters and optimizer, see sharding.py
                "rules": sharding.RULES,  # (regex on a leaf's path, spec)
                "min_bytes": sharding.FSDP_MIN_BYTES,  # of a leaf that "fsdp" splits
            },
        },
        convert_dict=True,
    )


def phase(**values: Any) -> ConfigDict:
    """Make a phase: `phase(objective=…, steps=…, optimizer=dict(learning_rate=…), …)`."""
    spec = ConfigDict(
        {
            "objective": "reconstruction",
            "objective_kw": {},
            "goal": "",  # the loss that each forget row should end with, see goals.py
            "cache_tokens": False,  # of images, by the tokenizer of MAGE: once, not in every step
            "steps": 1,  # at most
            "batch_size": 0,  # rows per step over all devices; 0: the config's
            "accumulate": 0,  # slices of each batch; 0: the config's
            "retain_weight": 1.0,  # 0: retain rows are neither loaded nor computed
            "forget_weight": 0.0,  # 0: the same for forget rows
            "forget_fraction": 0.5,  # of each batch, if both weights are positive
            "combine": "sum",  # of the retain and the forget gradient, see combine.py
            "combine_kw": {},
            # Of the parameters, before the first step, see shrink.py: alpha 0 leaves them as they
            # are, 1 starts anew; towards "initial" ones or those of config.reference_from.
            # By "layer": more of alpha for those that matter more to forget than to retain rows.
            "shrink": {"alpha": 0.0, "towards": "initial", "by": ""},
            # Before that: the original's checkpoint at this share of its own training, see
            # rewind.py; 0: not done.
            "rewind": 0.0,
            # What the objective compares with: "original", or "before", what the phase begins with
            # (before it is rewound or shrunk).
            "teacher": "original",
            "saliency": 0.0,  # share of the parameters that may change, see saliency.py; 0: all
            "optimizer": {
                "name": "adam",
                "learning_rate": 1e-3,
                "schedule": "constant",
                "warmup_steps": 0,
                "b1": 0.9,  # adam
                "b2": 0.999,  # adam
                "weight_decay": 0.0,
                "no_decay": (),  # regexes on paths of leaves that weight decay leaves alone
                "clip_norm_l2": 0.0,
            },
            # On the parameters: what a certificate comes from; not to be chosen by looking at the
            # forget set. Radii are those of balls around certificate.centre_from.
            "noise": {
                "std": 0.0,  # after every step, which is then clipped SGD; 0: none
                "initial_std": 0.0,  # once, before the first step; 0: none
                "radius": 0.0,  # of a projection before that; 0: none
                "model_clip": 0.0,  # of a projection in every step, before its noise; 0: none
            },
            "probe_every": 50,  # steps between measurements on the probe rows; 0: never
            # The phase ends early once metric >= at_least, seen every probe_every steps.
            # displacement: mean RMS distance to the original's outputs, forget probe, masked part.
            # forget_over_holdout: mean forget loss / the original's mean holdout loss.
            "stop": {"metric": "", "at_least": 0.0},
        }
    )
    for name, value in values.items():
        value = name_of(value) if callable(value) else value
        if name in FREE:
            spec[name] = ConfigDict(value)
        elif isinstance(value, Mapping):
            spec[name].update(value)
        else:
            spec[name] = value
    return spec


def method(label: str, phases: Sequence[str], source: str = "") -> ConfigDict:
    """Make a method to compare: its label, its phases of the unlearned stage, and its source."""
    return ConfigDict({"label": label, "phases": tuple(phases), "source": source})


def chosen_methods(config: ConfigDict) -> list[str]:
    """Return the names of the methods to compare."""
    return list(config.compare.only) or list(config.compare.methods)
