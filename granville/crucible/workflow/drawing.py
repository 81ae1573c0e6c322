"""A workflow as SVG: boxes in layers, from what is given down to what comes out, groups as frames around theirs.

Layers are by the longest way from the top; within a layer boxes go where their neighbours are (the barycentre method of
Sugiyama, Tagawa and Toda, 1981); an arrow over several layers passes each of them at a place of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from granville.crucible.workflow.graph import Box, Picture, picture
from granville.crucible.workflow.model import Workflow

CHAR_PX, TITLE_CHAR_PX = 6.7, 7.9
"""Widths of a character in the two sizes, a little over what is usual."""
LINE_PX, TITLE_PX, PAD_PX, CONDITION_PX = 16, 19, 12, 20
GAP_X_PX, GAP_Y_PX, MARGIN_PX, PASSING_PX = 28, 44, 20, 14
SWEEPS = 6

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 14px; font-weight: 600; }
.box { fill: #fff; stroke: #57606a; stroke-width: 1.3; }
.inference, .ranker { fill: #ddf4ff; stroke: #0969da; }
.stt, .tts { fill: #fbefff; stroke: #8250df; }
.embedding, .rerank { fill: #dafbe1; stroke: #1a7f37; }
.tool { fill: #fff8c5; stroke: #9a6700; }
.workflow { fill: #ffeff7; stroke: #bf3989; stroke-width: 2.4; }
.input, .outputs { fill: #eaeef2; stroke: #6e7781; }
.group { fill: #afb8c122; stroke: #6e7781; stroke-dasharray: 6 4; }
.arrow { fill: none; stroke: #6e7781; stroke-width: 1.4; marker-end: url(#head); }
.condition { font-style: italic; fill: #57606a; }
.behind { fill: #ffffffd9; }
#head path { fill: #6e7781; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .box { fill: #161b22; stroke: #8b949e; }
  .inference, .ranker { fill: #0c2d4d; stroke: #58a6ff; }
  .stt, .tts { fill: #2c1a4a; stroke: #bc8cff; }
  .embedding, .rerank { fill: #0f2f1a; stroke: #3fb950; }
  .tool { fill: #332600; stroke: #d29922; }
  .workflow { fill: #3d1430; stroke: #db61a2; }
  .input, .outputs { fill: #21262d; stroke: #8b949e; }
  .group { fill: #6e768122; stroke: #8b949e; }
  .arrow { stroke: #8b949e; }
  .condition { fill: #8b949e; }
  .behind { fill: #0d1117d9; }
  #head path { fill: #8b949e; }
}
"""


@dataclass
class _Cell:
    """A box, or the place where an arrow passes a layer."""

    box: Box | None
    width: float
    height: float
    inner: _Layout | None = None
    box_width: float = 0
    """Less than the cell's when the condition above it is wider."""
    x: float = 0
    """Of its middle."""
    y: float = 0
    """Of its top."""
    layer: int = 0


@dataclass
class _Layout:
    layers: list[list[_Cell]]
    ways: list[list[_Cell]]
    """Each arrow as the cells that it goes through, both ends with them."""
    width: float = 0
    height: float = 0


def svg(workflow: Workflow) -> str:
    """A picture for pages of light and of dark ground, as text."""
    layout = _laid_out(picture(workflow))
    parts: list[str] = []
    _draw(layout, MARGIN_PX, MARGIN_PX, parts)
    width, height = round(layout.width + 2 * MARGIN_PX), round(layout.height + 2 * MARGIN_PX)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(workflow.name, {chr(34): "&quot;"})}">\n<style>{_STYLE}</style>\n'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z"/></marker></defs>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _laid_out(one: Picture) -> _Layout:
    cells = {box.id: _cell(box) for box in one.boxes}
    before: dict[str, list[str]] = {box.id: [] for box in one.boxes}
    for start, end in one.arrows:
        before[end].append(start)
    depth: dict[str, int] = {}
    for box in _in_order(one, before):
        depth[box] = max((depth[start] + 1 for start in before[box] if start in depth), default=0)
    last = max(depth.values())
    for name, cell in cells.items():
        cell.layer = last if cell.box is not None and cell.box.kind == "outputs" else depth[name]
    layers: list[list[_Cell]] = [[] for _ in range(last + 1)]
    for cell in cells.values():
        layers[cell.layer].append(cell)
    ways = []
    for start, end in one.arrows:
        way = [cells[start]]
        for layer in range(cells[start].layer + 1, cells[end].layer):
            passing = _Cell(None, PASSING_PX, 0, layer=layer)
            layers[layer].append(passing)
            way.append(passing)
        ways.append([*way, cells[end]])
    layout = _Layout(layers, ways)
    _order(layout)
    _place(layout)
    return layout


def _in_order(one: Picture, before: dict[str, list[str]]) -> list[str]:
    """Each box after those that its arrows come from; a circle, which only a wrong workflow has, is cut somewhere."""
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in done or name in path:
            return
        for start in before[name]:
            visit(start, (*path, name))
        done[name] = None

    for box in one.boxes:
        visit(box.id, ())
    return list(done)


def _cell(box: Box) -> _Cell:
    texts = [len(line) * CHAR_PX for line in box.lines]
    width = max([len(box.title) * TITLE_CHAR_PX, *texts]) + 2 * PAD_PX
    height = float(TITLE_PX + LINE_PX * len(box.lines) + 2 * PAD_PX)
    inner = None
    if box.inner is not None and box.inner.boxes:
        inner = _laid_out(box.inner)
        width, height = max(width, inner.width + 2 * PAD_PX), height + inner.height
    above = CONDITION_PX if box.condition else 0
    return _Cell(box, max(width, len(box.condition) * CHAR_PX), height + above, inner, width)


def _order(layout: _Layout) -> None:
    """Put the cells of each layer where their neighbours above, then below, are."""
    above: dict[int, list[_Cell]] = {}
    below: dict[int, list[_Cell]] = {}
    for way in layout.ways:
        for start, end in pairwise(way):
            above.setdefault(id(end), []).append(start)
            below.setdefault(id(start), []).append(end)
    for sweep in range(SWEEPS):
        near, order = (above, layout.layers[1:]) if sweep % 2 == 0 else (below, layout.layers[-2::-1])
        for layer in layout.layers:
            for at, cell in enumerate(layer):
                cell.x = at
        for layer in order:
            middles = {
                id(cell): sum(one.x for one in near[id(cell)]) / len(near[id(cell)]) if id(cell) in near else cell.x
                for cell in layer
            }
            layer.sort(key=lambda cell: middles[id(cell)])
            for at, cell in enumerate(layer):
                cell.x = at


def _place(layout: _Layout) -> None:
    rows = [sum(cell.width for cell in layer) + GAP_X_PX * (len(layer) - 1) for layer in layout.layers]
    layout.width = max(rows)
    y = 0.0
    for layer, row in zip(layout.layers, rows, strict=True):
        x = (layout.width - row) / 2
        height = max(cell.height for cell in layer)
        for cell in layer:
            cell.x, cell.y = x + cell.width / 2, y
            if cell.box is None:
                cell.height = height
            x += cell.width + GAP_X_PX
        y += height + GAP_Y_PX
    layout.height = y - GAP_Y_PX


def _draw(layout: _Layout, left: float, top: float, parts: list[str]) -> None:
    parts += [f'<path class="arrow" d="{_line(way, left, top)}"/>' for way in layout.ways]
    for layer in layout.layers:
        for cell in layer:
            if cell.box is not None:
                _draw_box(cell, cell.box, left + cell.x - cell.width / 2, top + cell.y, parts)


def _line(way: list[_Cell], left: float, top: float) -> str:
    """From the bottom of the first to the top of the last, upright where it meets a layer."""
    x, y = left + way[0].x, top + way[0].y + way[0].height
    line = f"M{x:.1f} {y:.1f}"
    for cell in way[1:]:
        to_x, to_y = left + cell.x, top + cell.y
        if cell.box is not None and cell.box.condition:
            to_y += CONDITION_PX
        bend = (to_y - y) / 2
        line += f"C{x:.1f} {y + bend:.1f} {to_x:.1f} {to_y - bend:.1f} {to_x:.1f} {to_y:.1f}"
        if cell.box is None:
            to_y = top + cell.y + cell.height
            line += f"L{to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    return line


def _draw_box(cell: _Cell, box: Box, left: float, top: float, parts: list[str]) -> None:
    height, middle = cell.height, left + cell.width / 2
    left = middle - cell.box_width / 2
    if box.condition:
        wide = len(box.condition) * CHAR_PX
        parts += [
            f'<rect class="behind" x="{middle - wide / 2:.1f}" y="{top - 2:.1f}" width="{wide:.1f}" height="15"/>',
            f'<text class="condition" x="{middle:.1f}" y="{top + 10:.1f}" text-anchor="middle">'
            f"{escape(box.condition)}</text>",
        ]
        top, height = top + CONDITION_PX, height - CONDITION_PX
    round_px = 18 if box.kind in ("input", "outputs") else 6
    parts.append(
        f'<rect class="box {box.kind}" x="{left:.1f}" y="{top:.1f}" width="{cell.box_width:.1f}" height="{height:.1f}" '
        f'rx="{round_px}"/>'
    )
    y = top + PAD_PX + 13
    parts.append(f'<text class="title" x="{middle:.1f}" y="{y:.1f}" text-anchor="middle">{escape(box.title)}</text>')
    for line in box.lines:
        y += LINE_PX
        parts.append(f'<text x="{middle:.1f}" y="{y:.1f}" text-anchor="middle">{escape(line)}</text>')
    if cell.inner is not None:
        inside = middle - cell.inner.width / 2
        _draw(cell.inner, inside, top + TITLE_PX + LINE_PX * len(box.lines) + 1.5 * PAD_PX, parts)
