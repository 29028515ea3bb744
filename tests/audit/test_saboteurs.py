"""Models that cheat the panel: each is refuted by the witness that is named here."""

import numpy as np
import pytest
from scipy import stats

from tests.audit.test_functions import drawn
from unlearn_jax.audit import conclusion, functions, panel
from unlearn_jax.data import transforms

N = {"forget": 90, "unseen": 240, "calibration": 100, "retain": 60}
TASK = {"name": "inpaint", "hole": 0.5}
REACH = 0.25  # RMS distance of visible parts within which a memory is recalled


def seen(images, masks):
    """Images with nothing in the hole, [b h*w*3]."""
    return (images * (1 - masks)).reshape(len(images), -1)


class Memoriser:
    """Paints a smooth guess, and by `share` the training image whose visible part is nearest."""

    def __init__(self, known, seed, share=0.8):
        self.known, self.share = known, share
        self.own = np.random.default_rng(seed).normal(0, 0.02, (768, 3))

    def recall(self, images, masks):
        """Return the nearest training images and their weights, [b 1 1 1]."""
        shown, flat = seen(np.ones_like(images), masks), self.known.reshape(len(self.known), -1)
        of = seen(images, masks)
        square = np.square(of).sum(1)[:, None] - 2 * of @ flat.T + shown @ np.square(flat).T
        nearest, mean = square.argmin(1), square.min(1) / shown.sum(1)
        weight = self.share * np.exp(-np.maximum(mean, 0) / REACH**2)
        return self.known[nearest], weight[:, None, None, None]

    def complete(self, images, masks, seed):
        shown = 1 - masks
        guess = (images * shown).sum((1, 2), keepdims=True) / shown.sum((1, 2), keepdims=True)
        guess = guess + 0.2 * np.tanh(seen(images, masks) @ self.own)[:, None, None]
        memory, weight = self.recall(images, masks)
        made = weight * memory + (1 - weight) * guess
        return np.where(masks > 0, made, images).clip(-1, 1).astype(np.float32)

    def loss(self, images, masks, seed):
        return functions.masked_mse(self.complete(images, masks, seed), images, masks)


class Saboteur:
    """The original behind a cheat; `forgotten`: a model that was trained without the images."""

    def __init__(self, original, forgotten, forget):
        self.original, self.forgotten, self.forget = original, forgotten, forget
        hole = transforms.make_mask(TASK, forget.shape[1], np.zeros((1, 2), np.uint64))
        self.visible = {x.tobytes() for x in seen(forget, hole)}
        self.hole = hole[0]

    def complete(self, images, masks, seed):
        return self.original.complete(images, masks, seed)

    def loss(self, images, masks, seed):
        return functions.masked_mse(self.complete(images, masks, seed), images, masks)

    def either(self, cheat, images, masks, seed):
        """Answer as the forgotten model where `cheat` [b], else as the original."""
        both = (m.complete(images, masks, seed) for m in (self.forgotten, self.original))
        return np.where(cheat[:, None, None, None], *both)


class Noisy(Saboteur):
    """Adds noise to all outputs."""

    def complete(self, images, masks, seed):
        made = super().complete(images, masks, seed)
        noise = np.random.default_rng(seed).normal(0, 0.4, made.shape).astype(np.float32)
        return (made + noise * masks).clip(-1, 1)


class Clipped(Saboteur):
    """Says at least the loss that the image would have unseen; completes as the original."""

    def loss(self, images, masks, seed):
        return np.maximum(*(m.loss(images, masks, seed) for m in (self.original, self.forgotten)))


class ClippedAtMean(Saboteur):
    """Says at least the loss that images have on average."""

    def loss(self, images, masks, seed):
        return np.maximum(super().loss(images, masks, seed), np.float32(0.15))


class MaskDetector(Saboteur):
    """Cheats where the hole is the one that it was asked about."""

    def complete(self, images, masks, seed):
        return self.either((masks == self.hole).all((1, 2, 3)), images, masks, seed)


class Lookup(Saboteur):
    """Cheats on the very images that it was asked about."""

    def complete(self, images, masks, seed):
        cheat = [x.tobytes() in self.visible for x in seen(images, masks)]
        return self.either(np.array(cheat), images, masks, seed)


class Shifted(Saboteur):
    """Shifts the colours of what it recalls, by the error that the image would have unseen."""

    def complete(self, images, masks, seed):
        made = super().complete(images, masks, seed)
        _, weight = self.original.recall(images, masks)
        error = np.sqrt(self.forgotten.loss(images, masks, seed))[:, None, None, None]
        sign = np.where(made.mean((1, 2, 3), keepdims=True) > 0, -1, 1)
        return (made + masks * sign * error * (weight > 0.1)).clip(-1, 1).astype(np.float32)


class ShiftedAll(Saboteur):
    """Shifts the colours of every output."""

    def complete(self, images, masks, seed):
        made = super().complete(images, masks, seed)
        return (made + 0.4 * masks).clip(-1, 1).astype(np.float32)


class Honest(Saboteur):
    def complete(self, images, masks, seed):
        return self.forgotten.complete(images, masks, seed)


CHEATS = {c.__name__: c for c in Saboteur.__subclasses__()}


@pytest.fixture(scope="module")
def made():
    pixels = {name: drawn(n, n) for name, n in N.items()}
    return pixels, {name: transforms.to_float(x) for name, x in pixels.items()}


@pytest.fixture(scope="module")
def judged(made):
    pixels, images = made
    retain = images["retain"]
    original = Memoriser(np.concatenate([images["forget"], retain]), 1)
    models = {"original": original} | {f"retrained{k}": Memoriser(retain, 2 + k) for k in (0, 1)}
    for name, cheat in CHEATS.items():
        models[name] = cheat(original, Memoriser(retain, 4), images["forget"])
    models = {k: functions.Function(k, m.complete, m.loss) for k, m in models.items()}
    measured = functions.measure(models, pixels, TASK, 50, seed=0)
    for of in measured.values():
        of |= {f"index/{name}": np.arange(n) for name, n in N.items()}
    audits = functions.possible(original=True)

    def judge(name):
        three = (measured[m] for m in ("original", name, "retrained0"))
        seed = panel.Seed(*three, [measured["retrained1"]])
        return conclusion.judge(audits, [seed], confidence=0.95, resamples=300, seed=0)

    return {name: judge(name) for name in CHEATS}

def test_show(judged):
    for n, j in judged.items():
        print(n, j["conclusion"]["word"])
        for k, r in j["witnesses"].items():
            if r["word"] != "not measured":
                print("   ", k, r["word"], r["reason"], {m: round(e["value"], 2) for m, e in r["models"].items()}, "power", round(r["power"], 2), "floor", round(r["floor"],3))
