"""Tables I and II with the paper's numbers beside ours, and the ledger of readings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from alutils.experiment import TAU_B, TAU_U, same_run
from alutils.report.endpoints import arm_names, lesion_share, query_clicks
from alutils.report.statistics import area_under_curve, bootstrap_interval, images_to_reach
from alutils.system.files import write_csv, write_text

PAPER_TABLE_1 = pd.DataFrame(
    {
        "random": (87, 85),
        "full": (84, 83),
        "least_confidence": (88, 87),
        "entropy": (87, 86),
        "mc_dropout": (86, 85),
        "ALS+UNET [23]": (pd.NA, 81),
        "SA+AS [22]": (pd.NA, 86),
    },
    index=["val", "test"],
    dtype="Int64",
).T.rename_axis("arm")
"""Table I: Dice in %. By its abstract, [22] measures classification; Table I lists its number as a Dice score."""

PAPER_TABLE_2 = pd.DataFrame(
    {
        "dice": (80, 81, 81, 84, 83, 83, 84, 82, 82),
        "positive": (2, 5, 3, 5, 6, 5, 9, 9, 10),
        "verify": (12, 11, 11, 19, 18, 18, 32, 32, 32),
    },
    index=pd.MultiIndex.from_product([TAU_U, TAU_B], names=["tau_u", "tau_b"]),
)
"""Table II: Dice, positive pixels and pixels to verify, in %; the full data set has 83, 21 and 100."""


def table_1(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table I: how the images were chosen, the paper's Dice beside that of the runs.

    Args:
        results: from :func:`alutils.runs.collect.load_results`.

    Returns:
        One row per arm; Dice in %. ``sd`` is the standard deviation of ``test`` between seeds, ``low`` and ``high`` its
        95 % bootstrap interval over the test images. ``images`` is the number labelled at the end, ``val_area`` the
        mean height of the validation curve. At ``to_95`` and ``to_100`` labelled images the mean curve reaches 95 and
        100 % of the validation Dice of ``full``.

    >>> from alutils.runs.collect import load_results
    >>> ours = table_1(load_results("results/study"))  # from the project's root
    >>> ours.loc["random", ["paper_val", "paper_test"]].tolist()
    [87, 85]
    """
    runs = in_full(results["runs"])
    full = runs.loc[runs["strategy"] == "full", "val_dice"].mean()
    arms = [*PAPER_TABLE_1.index, *sorted(set(runs["strategy"]) - set(PAPER_TABLE_1.index))]
    ours = pd.DataFrame([_of_arm(results, runs[runs["strategy"] == arm], full) for arm in arms], arms)
    counts = dict.fromkeys(("seeds", "images", "to_95", "to_100"), "Int64")
    return PAPER_TABLE_1.reindex(arms).add_prefix("paper_").join(ours.astype(counts)).rename_axis("arm")


def _of_arm(results: Mapping[str, pd.DataFrame], runs: pd.DataFrame, full: float) -> dict[str, float]:
    """Our columns of Table I for the ``runs`` of an arm; all are missing where there is none."""
    curves, test_dice = (table[table["run"].isin(runs["run"])] for table in (results["rounds"], results["test_dice"]))
    mean_curve = curves.groupby("n_labelled", as_index=False)["val_dice"].mean()
    low, high = bootstrap_interval(test_dice.groupby("image_id")["dice"].mean())
    areas = [area_under_curve(curve) for _, curve in curves.groupby("run")]
    return {
        "val": 100 * runs["val_dice"].mean(),
        "test": 100 * runs["test_dice"].mean(),
        "sd": 100 * runs["test_dice"].std(),
        "low": 100 * low,
        "high": 100 * high,
        "seeds": len(runs) or pd.NA,
        "images": runs["n_labelled"].max(),
        "val_area": 100 * pd.Series(areas, dtype=float).mean(),
        "to_95": images_to_reach(mean_curve, 0.95 * full),
        "to_100": images_to_reach(mean_curve, full),
    }


def table_2(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table II: partial annotation at each tau_u and tau_b, the paper's numbers beside those of the runs.

    Where several cells are the same run (:func:`alutils.experiment.same_run`), all of them show its numbers.

    Args:
        results: from :func:`alutils.runs.collect.load_results`.

    Returns:
        One row per cell, in %: test ``dice`` (mean over seeds) and its ``sd``, ``positive`` and ``verify`` (means over
        the queried images), ``seeds``, and ``same_as``: the cell that stands for it.

    >>> from alutils.runs.collect import load_results
    >>> table_2(load_results("results/study")).loc[(0.25, 0.75), "same_as"]  # from the project's root
    'tau_u 0.25, tau_b 0.5'
    """
    runs = least_confidence_partial(results["runs"])
    shown = [same_run(*thresholds) for thresholds in PAPER_TABLE_2.index]
    rows = []
    for cell in shown:
        group = runs[cells(runs) == cell]
        rows.append(
            {
                "dice": 100 * group["test_dice"].mean(),
                "sd": 100 * group["test_dice"].std(),
                "positive": group["positive_percent"].mean(),
                "verify": group["verify_percent"].mean(),
                "seeds": len(group),
            }
        )
    ours = pd.DataFrame(rows, PAPER_TABLE_2.index)
    same_as = ["tau_u {}, tau_b {}".format(*cell) for cell in shown]
    return PAPER_TABLE_2.add_prefix("paper_").join(ours.assign(same_as=same_as))


def table_modes(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The annotation modes at tau_u = 0.25 and tau_b = 0.5, the best first.

    A mode that was not recorded at this tau_b is shown at the nearest one that was, of two as near at the smaller.

    Columns of :func:`table_2`, and over all queries ``share`` (:func:`alutils.report.endpoints.lesion_share`) and
    ``clicks`` per image; ``tau_b``, as text, is empty in mode full, which has none.
    """
    runs = results["runs"].query("strategy == 'least_confidence'")
    runs = runs[(runs["annotation"] == "full") | (runs["tau_u"] == 0.25)]
    one_run = runs["tau_b"].where(runs["annotation"] != "partial", cells(runs).str[1])  # see same_run
    runs = runs.assign(tau_b=one_run.mask(runs["annotation"] == "full").astype(float))
    distance = (runs["tau_b"] - 0.5).abs().round(9)  # for a computer 0.7 is nearer than 0.3
    nearest_first = runs.assign(distance=distance).sort_values(["distance", "tau_b"]).groupby("annotation")["tau_b"]
    runs = runs[runs["tau_b"].isna() | (runs["tau_b"] == runs["annotation"].map(nearest_first.first()))]
    shares, clicks = (runs["run"].map(of_runs(results)) for of_runs in (lesion_share, query_clicks))
    groups = runs.assign(share=shares, clicks=clicks).groupby("annotation")
    table = pd.DataFrame(
        {
            "dice": 100 * groups["test_dice"].mean(),
            "sd": 100 * groups["test_dice"].std(),
            "seeds": groups.size(),
            "verify": groups["verify_percent"].mean(),
            "positive": groups["positive_percent"].mean(),
            "share": groups["share"].mean(),
            "clicks": groups["clicks"].mean(),
            "tau_b": groups["tau_b"].first().map("{:g}".format).replace("nan", ""),
        }
    )
    return table.sort_values("dice", ascending=False)


COSTS = ("labelled images", "pixels verified, in whole images", "clicks")
"""The columns of :func:`costs` that say what a labelled set took."""


def costs(results: Mapping[str, pd.DataFrame], arms: Sequence[str]) -> pd.DataFrame:
    """What the labelled set of each round took, the cold start included, and the test Dice that it gave.

    Args:
        results: from :func:`alutils.runs.collect.load_results`.
        arms: names of :func:`alutils.report.endpoints.arm_names`; the order of the rows.

    Returns:
        One row per run and round: ``arm``, ``seed``, ``round``, :data:`COSTS` (sums over the labelled set), test Dice.
    """
    annotations = results["annotations"]
    totals = annotations[["verify_percent", "clicks"]].mul(annotations["images"], axis="index")
    taken = annotations[["run", "round"]].assign(
        **{COSTS[1]: totals["verify_percent"] / 100, COSTS[2]: totals["clicks"]}
    )
    sums = taken.groupby(["run", "round"]).sum().groupby("run").cumsum().reset_index()
    rounds = results["rounds"][["run", "round", "n_labelled", "test_dice"]].rename(columns={"n_labelled": COSTS[0]})
    runs = results["runs"].assign(arm=arm_names(results["runs"]))[["run", "arm", "seed"]]
    table = runs[runs["arm"].isin(arms)].merge(rounds, on="run").merge(sums, on=["run", "round"])
    table["arm"] = pd.Categorical(table["arm"], [arm for arm in arms if arm in set(table["arm"])])
    return table.dropna(subset="test_dice").sort_values(["arm", "seed", "round"], ignore_index=True)


def by_query(results: Mapping[str, pd.DataFrame], arms: Sequence[str]) -> pd.DataFrame:
    """What each query asked for, as means over its images and the seeds.

    Args:
        results: from :func:`alutils.runs.collect.load_results`.
        arms: names of :func:`alutils.report.endpoints.arm_names`; those without queries are left out.

    Returns:
        Rows by ``mean`` and ``arm``: "verify", the pixels to verify in %; "clicks" per image; "area", the true lesion
        area in %. One column per query, from 1.
    """
    of_run = arm_names(results["runs"]).set_axis(results["runs"]["run"])
    asked, rounds = (
        table.assign(arm=table["run"].map(of_run))[lambda rows: rows["arm"].isin(arms)]
        for table in (results["annotations"], results["rounds"])
    )
    asked, rounds = asked[asked["round"] > 0], rounds.assign(round=rounds["round"] + 1)  # queried after a round
    means = {
        "verify": asked.pivot_table("verify_percent", "arm", "round"),
        "clicks": asked.pivot_table("clicks", "arm", "round"),
        "area": rounds.pivot_table("lesion_area_percent", "arm", "round"),
    }
    return pd.concat(means, names=["mean"]).rename_axis(columns="query")


def table_audit(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the model wrote, audited after the last round: by annotation mode and tau_u, in %.

    ``wrong``: how many of the pixels that the model labelled are wrong. ``skin``: how many of these are skin that it
    called lesion. ``mask_dice``: the Dice of the masks that it was trained on; ``worst``: that of the worst query of
    any run. ``model_dice``: the Dice of its own prediction of the same images at the end.
    """
    audit = results["audit"].merge(results["runs"][["run", "annotation", "tau_u"]], on="run")
    last = audit[audit["round"] == audit.groupby("run")["round"].transform("max")]
    groups = last.groupby(["annotation", "tau_u"])
    dice = 100 * groups[["mask_dice", "model_dice"]].mean()
    sums = groups[["wrong_pixels", "missed_pixels", "model_pixels"]].sum()
    wrong = 100 * sums["wrong_pixels"] / sums["model_pixels"].clip(lower=1)
    skin = 100 - 100 * sums["missed_pixels"] / sums["wrong_pixels"]
    return pd.DataFrame({"wrong": wrong, "skin": skin, "worst": 100 * groups["mask_dice"].min()}).join(dice)


def cells(runs: pd.DataFrame) -> pd.Series:
    """The cell of Table II that stands for each run of mode partial (:func:`alutils.experiment.same_run`)."""
    pairs = zip(runs["tau_u"], runs["tau_b"], strict=True)
    return pd.Series([same_run(*pair) for pair in pairs], runs.index, object)


def in_full(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs whose queries were annotated in full: those of Table I."""
    return runs[runs["annotation"] == "full"]


def least_confidence_partial(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of Table II: least confidence queries the images, and the pixels are annotated in part."""
    return runs.query("annotation == 'partial' and strategy == 'least_confidence'")


def ledger(runs: pd.DataFrame) -> pd.DataFrame:
    """What the paper leaves open, and what ``runs`` did: where they differ in a setting, all its values."""
    settings = {
        name: ", ".join(str(value) for value in column.drop_duplicates().sort_values(key=lambda s: s.astype(str)))
        for name, column in runs.astype(object).where(runs.notna(), "none").items()
    }
    settings.setdefault("network", "unet_for")  # the network of runs from before there was a choice
    if settings.get("architecture", "unet") != "unet":
        settings["network"] += f", architecture {settings['architecture']}"
    rows = [(detail, paper, ours.format_map(settings)) for detail, paper, ours in READINGS]
    return pd.DataFrame(rows, columns=["detail", "the paper", "these runs"])


def write_table(stem: str | Path, table: pd.DataFrame) -> None:
    """Write ``table`` with its index as ``stem.csv`` (all digits) and ``stem.md`` (one decimal)."""
    write_csv(f"{stem}.csv", table.reset_index())
    shown = table.map(lambda value: "" if pd.isna(value) else f"{value:.1f}" if isinstance(value, float) else value)
    markdown = shown.rename(index=str).reset_index().to_markdown(index=False, disable_numparse=True)
    write_text(f"{stem}.md", markdown + "\n")


# Detail, what the paper says, what the runs did: a text with the names of settings in braces
READINGS = (
    ("image size", "512 x 512", "{image_size} x {image_size}; photographs are squashed, whatever their shape"),
    (
        "rounds",
        '"40 iterations", 8140 steps; Table II "20 iterations"',
        "n_queries = {n_queries} after a cold start of {cold_start}, {query_size} images each; "
        "{epochs} epochs per round",
    ),
    ("least confidence", "eq. 1, summed", "smallest sum first: eq. 1 is small where the model is unsure"),
    ("entropy", "eq. 2", "entropy: eq. 2 as printed, one-sided; binary_entropy: the usual one"),
    ("image score", "sum", "reduction = {reduction}"),
    (
        "Monte Carlo dropout",
        "N, place and rate not given",
        "N = {mc_samples}, rate {dropout} at the bottleneck; batch norm in evaluation mode",
    ),
    ("uncertain pixel", '"binarize the uncertainty mask"', "|0.5 - p| <= tau_u; tau_u = {tau_u}"),
    ("binarized prediction", '"binarize the predicted mask"', "p >= tau_b; tau_b = {tau_b}"),
    ("loss", "not given", "{loss}"),
    (
        "network",
        "ResNet-18 U-Net, 1x1 convolutions",
        "{network}: {encoder}, weights: {encoder_weights}, decoder {decoder_channels}",
    ),
    ("learning rate", "0.01", "{learning_rate}, {schedule}; a new optimizer each round; fine_tune = {fine_tune}"),
    ("batch size", "32", "{batch_size}"),
    ("rotation", '"±30 %"', "±{rotation} degrees"),
    ("blur", "kernel 5, sigma 0.01 to 0.2", "kernel {blur_kernel}, sigma {blur_sigma_min} to {blur_sigma_max}"),
    (
        "full data",
        "8140 steps, no schedule",
        "full: as many steps as the other arms; full_cosine: with a cosine schedule",
    ),
    ("precision", "not given", "{precision}"),
)
