"""Tables that no law was meant for, as CSV files, and what every answer about them must satisfy."""

import csv
import io
import math

import numpy as np

SIZES = ("n_params", "n_tokens")


def grid(rng, budgets=4, sizes=5, noise=0.004):
    """Return an isoFLOP table on a Chinchilla law."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    N = np.sqrt(flops / 120) * np.tile(np.geomspace(0.25, 4, sizes), budgets)
    return with_losses({"n_params": N, "n_tokens": flops / 6 / N}, rng, noise)


def scattered(rng, n=16):
    """Return runs at random N and D, without losses."""
    return {"n_params": 10 ** rng.uniform(6, 9, n), "n_tokens": 10 ** rng.uniform(8, 11, n)}


def with_losses(columns, rng, noise=0.004):
    N, D = (columns[name] for name in SIZES)
    clean = 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28
    return {**columns, "loss_nats": clean * np.exp(noise * rng.standard_normal(len(N)))}


def changed(**changes):
    """Return a kind of table: the grid with columns that are functions of its columns."""

    def kind(rng):
        columns = grid(rng)
        return {**columns, **{name: change(columns, rng) for name, change in changes.items()}}

    return kind


def at(**columns):
    """Return a kind of table: 16 runs at random N and D with one of these fixed, or a function."""

    def kind(rng):
        found = scattered(rng)
        for name, value in columns.items():
            found[name] = np.broadcast_to(value(found) if callable(value) else value, 16).copy()
        return with_losses(found, rng)

    return kind


def of_points(n_params, n_tokens, n=30):
    """Return a kind of table: n runs at a few points."""

    def kind(rng):
        which = np.arange(n) % len(n_params)
        sizes = {"n_params": np.array(n_params)[which], "n_tokens": np.array(n_tokens)[which]}
        return with_losses(sizes, rng)

    return kind


def without(*names):
    return lambda rng: {name: v for name, v in grid(rng).items() if name not in names}


def some(n, is_grid):
    def kind(rng):
        columns = grid(rng, 3, 4) if is_grid else with_losses(scattered(rng, 12), rng)
        rows = np.sort(rng.permutation(12)[:n])
        return {name: values[rows] for name, values in columns.items()}

    return kind


def losses(change):
    return changed(loss_nats=lambda columns, rng: change(columns["loss_nats"].copy(), rng))


def spoilt(value, n=3):
    def change(values, rng):
        values[rng.permutation(len(values))[:n]] = value
        return values

    return losses(change)


def scaled(**factors):
    return changed(
        **{name: lambda c, _, name=name, f=f: c[name] * f for name, f in factors.items()}
    )


def labels(make):
    return changed(cluster=lambda _, rng: np.array(make(rng)))


def repeated(rng):
    columns, which = grid(rng), np.arange(2000) % 20
    return with_losses({name: columns[name][which] for name in SIZES}, rng)


KINDS = {
    **{f"{n} scattered rows": some(n, is_grid=False) for n in range(1, 13)},
    **{f"{n} rows of a grid": some(n, is_grid=True) for n in range(1, 13)},
    "duplicates": lambda rng: {k: v[np.arange(40) % 20] for k, v in grid(rng).items()},
    "one row often": lambda rng: {k: np.repeat(v[:1], 12) for k, v in grid(rng).items()},
    "one point": of_points([1e8], [1e10]),
    "two points": of_points([1e8, 1e9], [1e10, 3e10]),
    "three points": of_points([1e8, 1e9, 1e8], [1e10, 3e10, 4e11]),
    "thousands of rows": repeated,
    "one D": at(n_tokens=1e10),
    "one N": at(n_params=1e8),
    "one ratio": at(n_tokens=lambda c: 20 * c["n_params"]),
    "one budget": at(n_tokens=lambda c: 1e19 / 6 / c["n_params"]),
    "narrow": at(
        n_params=lambda c: 1e8 * c["n_params"] ** 0.01, n_tokens=lambda c: c["n_tokens"] ** 0.01
    ),
    "two budgets": lambda rng: grid(rng, 2, 8),
    "tiny losses": scaled(loss_nats=1e-12),
    "huge losses": scaled(loss_nats=1e12),
    "losses near zero": scaled(loss_nats=1e-300),
    "N in millions": scaled(n_params=1e-6),
    "all in billions": scaled(n_params=1e-9, n_tokens=1e-9),
    "huge sizes": scaled(n_params=1e60),
    "sizes beyond a float": scaled(n_params=1e150, n_tokens=1e150),
    "D below N": changed(n_params=lambda c, _: c["n_tokens"], n_tokens=lambda c, _: c["n_params"]),
    "an outlier": losses(lambda v, _: v * np.where(np.arange(20) == 7, 300.0, 1.0)),
    "outliers": losses(lambda v, rng: v * 10 ** (rng.uniform(-1, 1, 20) * (rng.random(20) < 0.4))),
    "infinite losses": spoilt(np.inf),
    "missing losses": spoilt(np.nan),
    "no finite loss": spoilt(np.nan, 20),
    "negative losses": spoilt(-1.0),
    "losses of zero": spoilt(0.0, 20),
    "equal losses": spoilt(3.0, 20),
    "equal losses but one": losses(lambda v, _: np.where(np.arange(20) == 4, 2.9, 3.0)),
    "nearly equal losses": losses(lambda _, rng: 3 + 1e-13 * rng.standard_normal(20)),
    "losses of one digit": losses(lambda v, _: v.round(1)),
    "two losses": changed(loss_nats=lambda c, _: np.where(c["n_params"] > 1e8, 2.5, 3.0)),
    "losses that rise": changed(loss_nats=lambda c, _: 1 + 0.1 * np.log(c["n_params"])),
    "losses of N alone": changed(loss_nats=lambda c, _: 400 / c["n_params"] ** 0.34),
    "noise alone": losses(lambda v, rng: 3 * np.exp(0.1 * rng.standard_normal(20))),
    "wild losses": losses(lambda v, rng: 10 ** rng.uniform(-3, 3, 20)),
    "no noise": lambda rng: grid(rng, noise=0.0),
    "loud": lambda rng: grid(rng, noise=0.5),
    "clusters and lone rows": labels(
        lambda rng: [f"x{i}" if alone else "a" for i, alone in enumerate(rng.random(20) < 0.5)]
    ),
    "one cluster": labels(lambda _: ["a"] * 20),
    "two clusters": labels(lambda _: ["a", "b"] * 10),
    "clusters without a name": labels(lambda _: ["", "b", "c", "1"] * 5),
    "a column of text": changed(note=lambda *_: np.array(["x,y", 'q"', "", "ü"] * 5)),
    "N as text": changed(n_params=lambda c, _: [f"{x / 1e6:.0f}M" for x in c["n_params"]]),
    "losses as text": losses(lambda v, _: [f"{x:.3f} nats" for x in v]),
    "some losses as text": losses(lambda v, _: ["diverged", "", *map(str, v[2:])]),
    "losses as booleans": losses(lambda *_: ["true", "false"] * 10),
    "decimal commas": lambda rng: {
        name: [str(x).replace(".", ",") for x in values] for name, values in grid(rng).items()
    },
    "no rows": lambda rng: {name: values[:0] for name, values in grid(rng).items()},
    "no columns": lambda rng: {},
    "no losses": without("loss_nats"),
    "no D": without("n_tokens"),
    "repeats of one text": changed(unique_tokens=lambda *_: np.full(20, 1e6)),
    "unique tokens in part": changed(unique_tokens=lambda *_: [1e9, np.nan] * 10),
    "two counts of N": changed(
        n_params_kaplan=lambda c, _: c["n_params"] * 0.5,
        n_params_chinchilla=lambda c, _: c["n_params"],
    ),
    "one count of N is zero": changed(n_params_kaplan=lambda *_: np.zeros(20)),
    "FLOPs that disagree": changed(flops=lambda *_: np.full(20, 1e10)),
    "one far run": changed(n_params=lambda c, _: np.where(np.arange(20) < 1, 1e14, c["n_params"])),
}


def write(kind, seed, path):
    """Write the table of a kind and seed."""
    columns = KINDS[kind](np.random.default_rng(seed))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    path.write_text(text.getvalue())


def faults(found, where=""):
    """Yield what is wrong with the intervals and refusals of a JSON object."""
    if isinstance(found, list):
        for i, each in enumerate(found):
            yield from faults(each, f"{where}[{i}]")
    if not isinstance(found, dict):
        return
    for name, each in found.items():
        yield from faults(each, f"{where}.{name}")
        if name in ("refused", "error"):
            for one in each if name == "refused" else [each]:
                if not all(one[part] for part in ("given", "allowed", "do")):
                    yield f"{where}: a refusal without a remedy: {one}"
    value = found.get("value", found.get("loss_nats"))
    low, high = found.get("low"), found.get("high")
    if not (is_number(low) and is_number(high)):
        return
    if is_number(value) and not low <= value <= high:
        yield f"{where}: {value} is outside [{low}, {high}]"
    if low == high:
        yield f"{where}: an interval of no width at {low}"
    new_low, new_high = found.get("pred_low"), found.get("pred_high")
    if is_number(new_low) and is_number(new_high) and not new_low <= low < high <= new_high:
        yield f"{where}: a new run in [{new_low}, {new_high}], the law in [{low}, {high}]"


def is_number(value):
    return isinstance(value, float) and math.isfinite(value)
