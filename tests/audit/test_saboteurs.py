"""Models that cheat the panel: each is refuted by the witness that is named here."""

import numpy as np
import pytest

from tests.audit.test_functions import drawn
from unlearn_jax.audit import conclusion, functions, panel
from unlearn_jax.data import transforms

pytestmark = pytest.mark.long
N = {"forget": 90, "unseen": 210, "calibration": 60}
TASK = {"name": "inpaint", "hole": 0.5}
REACH = 0.25  # RMS distance of visible parts within which a memory is recalled


def seen(images, masks):
    """Images with nothing in the hole, [b h*w*3]."""
    return (images * (1 - masks)).reshape(len(images), -1)


class Memoriser:
    """Paints a smooth guess, and by `share` the training image whose visible part is nearest."""

    def __init__(self, known, seed, share=0.95):
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
    """Shifts the colours of what it recalls until the error is what it would be unseen."""

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


USUAL = ("forget_error", "membership_plain")
CHEATS = {  # -> witnesses that must refute it, and those that it fools
    Noisy: (("forget_error", "membership_plain", "membership_noise"), ()),
    Clipped: (("displacement", "membership_structure"), USUAL),
    ClippedAtMean: (("displacement", "membership_plain"), ("membership_plain.tpr_at_1_fpr",)),
    MaskDetector: (("membership_masks",), (*USUAL, "membership_noise", "displacement")),
    Lookup: (("membership_noise",), (*USUAL, "displacement")),
    Shifted: (("membership_structure",), (*USUAL, "membership_noise", "displacement")),
    ShiftedAll: (("forget_error", "membership_plain"), ()),
}


@pytest.fixture(scope="module")
def judge():
    """Return cheat -> the conclusion; None is a model that was trained without the images."""
    pixels = {name: drawn(n, n) for name, n in N.items()}
    forget, retain = (transforms.to_float(x) for x in (pixels["forget"], drawn(60, 7)))
    original, *retrained, forgotten = (
        Memoriser(known, seed)
        for seed, known in enumerate([np.concatenate([forget, retain]), *[retain] * 3])
    )

    models = {"original": original, "retrained": retrained[0], "further": retrained[1]}
    models |= {None: forgotten} | {cheat: cheat(original, forgotten, forget) for cheat in CHEATS}
    models = {k: functions.Function(str(k), m.complete, m.loss) for k, m in models.items()}
    measured = functions.measure(models, pixels, TASK, 60, seed=0)
    for of in measured.values():
        of |= {f"index/{name}": np.arange(n) for name, n in N.items()}

    def judge(cheat):
        three = (measured[name] for name in ("original", cheat, "retrained"))
        seed, audits = panel.Seed(*three, [measured["further"]]), functions.possible(original=True)
        return conclusion.judge(audits, [seed], confidence=0.95, resamples=200, seed=0)

    return judge


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_who_cheats_is_refuted(judge, cheat):
    found = judge(cheat)
    words = {name: row["word"] for name, row in found["witnesses"].items()}
    by, fooled = CHEATS[cheat]
    assert {name: words[name] for name in by} == dict.fromkeys(by, "refuted")
    assert "refuted" not in {words[name] for name in fooled}
    assert found["conclusion"]["word"] == "refuted"


def test_who_never_saw_the_images_is_not(judge):
    found = judge(None)
    assert found["conclusion"]["word"] == "not refuted"
    assert "refuted" not in {row["word"] for row in found["witnesses"].values()}
