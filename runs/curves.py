"""Curves of training runs as a picture, drawn by matplotlib."""

import io
import math

from system.files import save_whole

SIZE, DPI = (8, 4.8), 100  # of a chart, in inches, and pixels of an inch


def draw_curves(path, charts):
    """Write charts below one another as a PNG.

    Args:
        charts: list of (title, {name: [{epoch: value}]}, log scale); runs of one name share a colour. Values that are
            not finite are left out, and on a log scale those that are not above 0; a chart without any is left empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes half a second: for those who draw
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    figure = Figure((SIZE[0], SIZE[1] * len(charts)), DPI, layout='constrained')
    for axes, (title, curves, log) in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts, strict=True):
        drawn = []
        for i, (name, runs) in enumerate(curves.items()):
            for k, run in enumerate(runs):
                points = sorted((e, v) for e, v in run.items() if math.isfinite(v) and (v > 0 or not log))
                label = name + (f' ({len(runs)} runs)' if len(runs) > 1 else '')
                axes.plot(*zip(*points, strict=True) if points else ([], []), color=f'C{i}', label='_' if k else label,
                          marker='.' if len(points) < 50 else None)  # fmt: skip
                drawn += [value for _, value in points]
        axes.set(title=title, xlabel='epoch')
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_yscale('log' if log and drawn else 'linear')
        if log and drawn and max(drawn) > 10 * min(drawn):
            axes.yaxis.set_major_locator(LogLocator(numticks=10))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(10))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(color='0.9')
        if any(curves):
            axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    save_whole(lambda file: file.write(picture.getbuffer()), path)
