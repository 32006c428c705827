"""What the arms are compared by: Dice, the area under the learning curve, pixels and clicks, each by arm and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from alutils.runs.collect import arm_name

Results = Mapping[str, pd.DataFrame]
ByArm = dict[str, pd.DataFrame] | dict[str, pd.Series]

FEW_IMAGES = 0.3  # "annotating only 30 % of the images" (section VII)


def arm_names(runs: pd.DataFrame) -> pd.Series:
    """:func:`alutils.runs.collect.arm_name` of each run."""
    columns = (runs[column] for column in ("strategy", "annotation", "tau_u", "tau_b"))
    return pd.Series([arm_name(*row) for row in zip(*columns, strict=True)], runs.index, object)


def by_arm(results: Results, endpoint: str) -> ByArm:
    """One endpoint of every arm.

    Returns:
        By the name of :func:`arm_names`. "dice" (of the last round) and "area" (mean height of the test image's Dice
        over the labelled images) are tables (seeds, test images) in Dice points. The others have one number per seed:
        "dice at 30 %" (mean test Dice of the round nearest to 30 % of the images; none where a run ends with fewer than
        28 %) and, over the queries of the second half, "positive" (% of the pixels that the expert labels as lesion),
        "share" (the same in % of the lesions' pixels) and "clicks" (per queried image). Arms without it are left out.
    """
    if endpoint in OVER_IMAGES:
        runs = results["runs"].assign(arm=arm_names(results["runs"]))
        found = results["test_dice"].dropna(subset=endpoint) if endpoint in results["test_dice"] else pd.DataFrame()
        table = found.merge(runs[["run", "arm", "seed"]], on="run", suffixes=("_", "")) if len(found) else runs[:0]
        return {
            arm: 100 * group.pivot_table(index="seed", columns="image_id", values=endpoint)
            for arm, group in table.groupby("arm")
        }
    return by_seed(results, _PER_RUN[endpoint](results))


def by_seed(results: Results, values: pd.Series) -> dict[str, pd.Series]:
    """A number per run (as of :func:`lesion_share`) by arm and then by seed; runs without it are left out."""
    runs = results["runs"].assign(arm=arm_names(results["runs"]))
    table = runs.assign(value=runs["run"].map(values)).dropna(subset="value")
    return {arm: group.set_index("seed")["value"] for arm, group in table.groupby("arm")}


def mean_per_image(annotations: pd.DataFrame, cost: str) -> pd.Series:
    """The mean of a cost over the images of each run, from the means of its rounds ("annotations"), by run.

    >>> rounds = pd.DataFrame({"run": ["a", "a"], "images": [1, 3], "clicks": [10.0, 2.0]})
    >>> mean_per_image(rounds, "clicks").to_dict()
    {'a': 4.0}
    """
    totals = annotations["images"] * annotations[cost]
    return totals.groupby(annotations["run"]).sum() / annotations.groupby("run")["images"].sum()


def _dice_of_few(results: Results) -> pd.Series:
    rounds = results["rounds"]
    share = rounds["n_labelled"] / rounds["run"].map(results["runs"].set_index("run")["n_train"])
    goes_on = share.groupby(rounds["run"]).transform("max") >= FEW_IMAGES - 0.02
    by_distance = rounds.assign(off=(share - FEW_IMAGES).abs())[goes_on].sort_values("off", kind="stable")
    return 100 * by_distance.drop_duplicates("run").set_index("run")["test_dice"].astype(float)


def lesion_share(results: Results) -> pd.Series:
    """Lesion pixels that the expert labels, % of the queried images' lesion pixels, by run."""
    # What a round queries is annotated for the next
    queried = results["rounds"][["run", "round", "lesion_area_percent"]]
    annotations = results["annotations"].merge(queried.assign(round=queried["round"] + 1), on=["run", "round"])
    return 100 * mean_per_image(annotations, "positive_percent") / mean_per_image(annotations, "lesion_area_percent")


def query_clicks(results: Results) -> pd.Series:
    """Clicks per queried image, without the cold start, by run."""
    return mean_per_image(results["annotations"].query("round > 0"), "clicks")


def _late(results: Results) -> Results:
    """The results with the images alone that were annotated after the queries of the second half."""
    annotations = results["annotations"]
    last = results["rounds"].groupby("run")["round"].max()
    return {**results, "annotations": annotations[annotations["round"] > annotations["run"].map(last) / 2]}


OVER_IMAGES = ("dice", "area")
"""The endpoints that each test image has."""
_PER_RUN: dict[str, Callable[[Results], pd.Series]] = {
    "dice at 30 %": _dice_of_few,
    "positive": lambda results: mean_per_image(_late(results)["annotations"], "positive_percent"),
    "share": lambda results: lesion_share(_late(results)),
    "clicks": lambda results: query_clicks(_late(results)),
}
