"""What would be measured of models that remember a known share of what the original does."""

import numpy as np

SETS = ("forget", "unseen", "calibration", "retain")


class Images:
    """Images of various difficulty, the same for all models."""

    def __init__(self, seed=0, n=200, d=24):
        rng = np.random.default_rng(seed)
        self.n, self.seed = n, seed
        self.hard = {s: rng.normal(0, 0.5, n) for s in SETS}
        self.looks = {s: rng.normal(0, 0.25, n) for s in SETS}  # what features do not tell
        self.payload = np.where(np.arange(d) % 2, 1.0, -1.0)

    def model(self, seed, known=0.0, only=None, retain=1.0):
        """Measured of a model; `known`: the share of the original's memory, of arrays in `only`.

        The original's loss on forget images is e times smaller than on unseen ones, in all arrays.
        """
        rng, n = np.random.default_rng([self.seed, 1, seed]), self.n
        share = lambda key: known if only is None or only == key else 0.0  # noqa: E731

        def losses(key, s, columns=1, noise=0.15):
            memory = retain if s == "retain" else share(key) if s == "forget" else 0.0
            own = rng.normal(0, noise, n)[:, None] + rng.normal(0, 0.02, (n, columns))
            return np.exp(-2 + (self.hard[s] + self.looks[s] - memory)[:, None] + own)

        found = {f"index/{s}": np.arange(n) for s in SETS}
        for s in SETS:
            found[f"loss/{s}"] = losses("loss", s)
            found[f"views/{s}"] = np.exp(
                -2 + (self.hard[s] + self.looks[s])[:, None] + rng.normal(0, 0.15, (n, 7))
            )
            noise = np.random.default_rng([self.seed, 2]).normal(size=(n, 2))
            found[f"features/{s}"] = np.column_stack([self.hard[s], noise])
        for s in SETS[:2]:
            found[f"error/{s}"] = found[f"loss/{s}"][:, 0]
            found[f"noise/{s}"] = losses("noise", s, 6, noise=0.1)
            found[f"masks/{s}"] = losses("masks", s, 4)
            found[f"structure/{s}"] = losses("structure", s)[:, 0]
            found[f"visible/{s}"] = losses("visible", s)[:, 0]
            for k in (50, 200):
                found[f"resurfacing/retain/0.0003/{k}/{s}"] = losses("resurfacing", s)
            found[f"relearning/{s}"] = losses("relearning", s)[:, 0]
            for bits in (8, 4):
                found[f"quantised/{bits}/{s}"] = losses("quantised", s)
            moved = 1 - share("displacement") if s == "forget" else 0.5
            rms = np.sqrt(np.exp(-2 + self.hard[s] + rng.normal(0, 0.15, n)))
            found[f"displacement/{s}"] = moved * rms
        clean = rng.normal(0, 0.2, (n, len(self.payload)))
        moved = 0.95 * share("backdoor") * (self.payload - clean)
        found["backdoor/clean"] = clean - self.payload
        found["backdoor/triggered"] = (
            clean + moved + rng.normal(0, 0.05, clean.shape) - self.payload
        )
        return found

    def seed_of(self, known=0.0, only=None, **options):
        """A `panel.Seed`: original, unlearned with that memory, retrained, one more retrained."""
        from unlearn_jax.audit.panel import Seed

        unlearned = self.model(2, known, only, **options)
        return Seed(self.model(1, 1.0), unlearned, self.model(3), [self.model(4)])
