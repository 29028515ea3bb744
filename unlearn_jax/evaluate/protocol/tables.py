"""The rows of the published tables, for a terminal and as CSV."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETS = ("retain", "forget")


def headline(metric: Mapping[str, Any]) -> float:
    """Pick the number of a metric that a table shows."""
    return metric["value"] if "value" in metric else metric["mean"]


def text(results: Mapping[str, Any]) -> str:
    """Make the rows for a terminal, retain and forget side by side."""
    metrics, sets = list(results["metrics"]), results["sets"]
    widths = [max(len(metric), 10) for metric in metrics]
    heads = "  ".join(f"{metric:>{width}}" for metric, width in zip(metrics, widths, strict=True))
    names = [f"{name}, n = {sets[name]['n']:,}" for name in SETS]
    lines = [" " * 26 + "   ".join(f"{name:<{len(heads)}}" for name in names).rstrip()]
    lines += [f"{'model':14}{'task':12}{heads}   {heads}"]
    for row in results["rows"]:
        cells = [
            "  ".join(
                f"{headline(row[name][metric]):>{width}.4g}"
                for metric, width in zip(metrics, widths, strict=True)
            )
            for name in SETS
        ]
        lines.append(
            f"{row['model']:14}{row['task'] + ' ' + str(row['size']):12}{'   '.join(cells)}"
        )
    return "\n".join(lines)


def write_csv(path: Path, results: Mapping[str, Any]) -> None:
    """Write a row for each model, task and size: the metrics of retain, then of forget.

    As in the tables of Li et al. a score also has its deviation over splits.
    """
    records = []
    for row in results["rows"]:
        record = {key: row[key] for key in ("model", "task", "size")}
        for name in SETS:
            record[f"{name}_n"] = results["sets"][name]["n"]
            for metric, found in row[name].items():
                record[f"{name}_{metric}"] = headline(found)
                if found["kind"] == "score":
                    record[f"{name}_{metric}_std"] = found["std"]
        records.append(record)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
