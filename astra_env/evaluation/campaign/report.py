"""The results as a markdown report."""

from collections.abc import Mapping
from typing import Any

from astra_env.strategy import CROSSING

HELD_OUT = "held-out "
"""In front of measurements on training images that were held out to choose a checkpoint."""


def markdown(results: Mapping[str, Any]) -> str:
    """Return the report of what ``results.json`` holds: tables, how they were made, choice of epoch, warnings."""
    sections = (_heading, _comparison, _attacks, _training, _corruptions, _choice, _warnings)
    parts = [section(results) for section in sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def accuracies(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a network's measurements that are a single accuracy, by name."""
    return {name: found for name, found in record["measurements"].items() if "accuracy" in found}


def chosen(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for every run whose kept checkpoints were all evaluated, which one the held-out images choose.

    Keys: ``measurement``; ``best`` and ``last``, names of checkpoints; ``best_accuracy`` and ``last_accuracy`` on the
    test images, 0 to 1. The held-out images decide alone; of equals the earlier checkpoint is taken.
    """
    scored: dict[tuple[str, str], list[tuple[float, str, float]]] = {}
    for name, record in results["networks"].items():
        found = accuracies(record)
        for held_out in (measurement for measurement in found if measurement.startswith(HELD_OUT)):
            measurement = held_out.removeprefix(HELD_OUT)
            if measurement in found:
                entry = (found[held_out]["accuracy"], name, found[measurement]["accuracy"])
                scored.setdefault((name.rpartition("/")[0], measurement), []).append(entry)
    choices = []
    for (_, measurement), entries in scored.items():
        best, last = max(entries, key=lambda entry: entry[0]), entries[-1]
        choices.append(
            {
                "measurement": measurement,
                "best": best[1],
                "best_accuracy": best[2],
                "last": last[1],
                "last_accuracy": last[2],
            }
        )
    return choices


def _heading(results: Mapping[str, Any]) -> str:
    data = results["conditions"]["data"]
    head = f"# Evaluation on {data['name']}"
    if results["status"] != "complete":
        head += "\n\n**Partial: the evaluation was not finished; run the same command again to continue.**"
    return head


def _comparison(results: Mapping[str, Any]) -> str:
    networks = results["networks"]
    columns = list(dict.fromkeys(name for record in networks.values() for name in accuracies(record)))
    lines = [
        "Accuracy in % with its 95 % confidence interval (Wilson).",
        "",
        "| network | protocol | images | " + " | ".join(columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for name, record in networks.items():
        found = accuracies(record)
        total = next((item["total"] for item in found.values()), "")
        cells = [_cell(found[column]) if column in found else "" for column in columns]
        protocol = record.get("training", {}).get("protocol", "")
        lines.append(f"| {name} | {protocol} | {total} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['accuracy']:.2f} ({100 * low:.2f}-{100 * high:.2f})"


def _attacks(results: Mapping[str, Any]) -> str:
    """Return the settings behind every attack's name, for a name says neither the step size nor the starts."""
    found: dict[str, None] = {}
    for record in results["networks"].values():
        for name, measured in record["measurements"].items():
            settings = measured.get("settings", {})
            if "objective" in settings:
                found[f"- {name}: {_steps(settings)}"] = None
            elif name in ("curve: radius", "curve: path"):
                found[f"- {name}: PGD, {settings['steps']} steps of {CROSSING} * radius / {settings['steps']}"] = None
    return "\n".join(["Attacks:", "", *found]) if found else ""


def _steps(settings: Mapping[str, Any]) -> str:
    size, starts = settings["step_size"], settings["restarts"]
    if size is None:
        size = CROSSING * settings["epsilon"] / max(settings["steps"], 1)
    start = "1 random start" if starts == 1 else f"{starts} random starts"
    return f"{settings['steps']} steps of {255 * size:.4g}/255, {start} in the ball"


def _training(results: Mapping[str, Any]) -> str:
    """Return a line for every network whose classifier saw not all labels."""
    lines = []
    for name, record in results["networks"].items():
        training = record.get("training", {})
        if training.get("protocol") == "semi_supervised" and "labelled" in training:
            lines.append(f"- {name}: {_semi_supervised(training)}")
        elif training.get("label_fraction", 1) < 1:
            share = f"{100 * training['label_fraction']:.4g} % of the labels"
            lines.append(f"- {name}: {training['protocol']} on {share} ({training['images']} images), no others used.")
    return "\n".join(["Training:", "", *lines]) if lines else ""


def _semi_supervised(training: Mapping[str, Any]) -> str:
    options, pseudo = training["semi_supervised"], training["pseudo_labels"]
    standard, tuned = training["standard"], training["fine_tuning"]
    chosen_by = "the last epochs are used."
    if training["held_out"]:
        chosen_by = (
            f"{training['held_out']} held-out training images chose epoch {standard['epoch']} "
            f"({100 * standard['held_out_accuracy']:.2f} % clean) and epoch {tuned['epoch']} "
            f"({100 * tuned['held_out_accuracy']:.2f} % under PGD-20, steps of 2/255 in 8/255)."
        )
    return (
        f"semi-supervised. Standard training on {training['labelled']} labelled images, {options['standard_epochs']} "
        f"epochs, gives the pseudo-labels of {training['pseudo_labelled']} others ({100 * pseudo['accuracy']:.2f} % "
        f"right); adversarial fine-tuning on both, {options['epochs']} epochs; {chosen_by}"
    )


def _corruptions(results: Mapping[str, Any]) -> str:
    rows = {
        name: record["measurements"]["corruptions"]
        for name, record in results["networks"].items()
        if "corruptions" in record["measurements"]
    }
    if not rows:
        return ""
    lines = [
        "## Corruptions",
        "",
        "Mean accuracy in % over the 15 standard corruptions, and per severity; extra corruptions separately.",
        "",
        "| network | mean | 1 | 2 | 3 | 4 | 5 | extra |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        severities = " | ".join(f"{100 * value:.2f}" for value in found["by_severity"])
        extra = ", ".join(
            f"{kind} {100 * sum(item['accuracy'] for item in row) / len(row):.2f}"
            for kind, row in found["extra"].items()
        )
        lines.append(f"| {name} | {100 * found['mean']:.2f} | {severities} | {extra} |")
    return "\n".join(lines)


def _choice(results: Mapping[str, Any]) -> str:
    lines = [
        f"- {found['measurement']}: held-out training images choose {found['best']}, which has "
        f"{100 * found['best_accuracy']:.2f} % on the test images; the last one, {found['last']}, has "
        f"{100 * found['last_accuracy']:.2f} %."
        for found in chosen(results)
    ]
    return "\n".join(["## Choice of checkpoint", "", *lines]) if lines else ""


def _warnings(results: Mapping[str, Any]) -> str:
    lines = [
        f"- {name}, {measurement}: {warning}"
        for name, record in results["networks"].items()
        for measurement, found in record["measurements"].items()
        for warning in found.get("warnings", [])
    ]
    return "\n".join(["## Warnings", "", *lines]) if lines else ""
