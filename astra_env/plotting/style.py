"""How every figure looks and is saved, without pyplot's global state."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANEL_INCHES = (5.0, 3.6)


def new_figure(
    rows: int = 1, columns: int = 1, *, panel: tuple[float, float] = PANEL_INCHES
) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``rows`` x ``columns`` panels, each (width, height) inches, and its axes row by row."""
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [axis for line in figure.subplots(rows, columns, squeeze=False) for axis in line]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write the figure to ``path`` (format by its ending), creating the folder, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path
