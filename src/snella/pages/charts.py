"""The charts of a page, in Vega-Lite, and the script that draws them.

Colours are the variables of the page's style sheet, so that they follow the light or dark of the reader's system.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from snella.errors import UserError
from snella.files import cache_folder, writing
from snella.report.allocation import Shares
from snella.report.tables import is_share

Spec = dict[str, Any]
THINNED = 500  # points of a line at most
GREY, LINE, INK = "var(--grey)", "var(--line)", "var(--ink)"
COLOURS = ["var(--blue)", "var(--orange)"]
_AXIS = {"labelColor": GREY, "titleColor": GREY, "gridColor": LINE, "domainColor": LINE, "tickColor": LINE}
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {**_AXIS, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 110},
    "legend": {"labelColor": INK, "titleColor": GREY, "orient": "top", "title": None, "labelFontSize": 12},
    "title": {"color": INK, "anchor": "start", "fontSize": 13},
}


def library() -> str:
    """Return the script of vega-embed with all that it needs, about 0.9 MB; it is made once and kept in the cache.

    Raises:
        UserError: the package that has it is missing.
    """
    try:
        import vl_convert
    except ImportError:
        raise UserError(
            "a report's charts need the package vl-convert-python; run: pip install vl-convert-python"
        ) from None
    path = cache_folder() / f"vega-embed-{version('vl-convert-python')}.js"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    text = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue] (a snippet need not be given)
    text = text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with writing(path, shared=True) as partial:
        partial.write_text(text, encoding="utf-8")
    return text


def _chart(values: Sequence[Mapping[str, Any]], height: int, **rest: Any) -> Spec:
    return {
        "width": "container",
        "height": height,
        "data": {"values": values},
        "config": CONFIG,
        **rest,
    }


def _axis(field: str, title: str | None, *, share: bool = False, **rest: Any) -> Spec:
    axis = {"title": title, **({"format": ".0%"} if share else {})}
    return {"field": field, "type": "quantitative", "axis": axis | rest.pop("axis", {}), **rest}


def _tip(field: str, title: str, *, share: bool = False, nominal: bool = False) -> Spec:
    return {
        "field": field, "title": title, "type": "nominal" if nominal else "quantitative",
        **({} if nominal else {"format": ".1%" if share else ".4~g"}),
    }  # fmt: skip


def _thinned(rows: Sequence[Any]) -> Sequence[Any]:
    every = math.ceil(len(rows) / THINNED)
    return rows[::every] if every > 1 else rows


def loss_curves(train: Sequence[tuple[float, float]], val: Sequence[tuple[float, float]]) -> Spec:
    """Draw losses by epoch: pairs (epoch, loss) of the training and of val."""
    values = [
        {"epoch": x, "loss": y, "of": name}
        for name, pairs in (("training", train), ("validation", val))
        for x, y in _thinned(pairs)
        if math.isfinite(y)
    ]
    colour = {"field": "of", "type": "nominal", "scale": {"domain": ["training", "validation"], "range": COLOURS}}
    encoding = {
        "x": _axis("epoch", "epoch"),
        "y": _axis("loss", "loss", scale={"zero": False}),
        "color": colour,
        "tooltip": [_tip("of", "loss of", nominal=True), _tip("epoch", "epoch"), _tip("loss", "loss")],
    }
    return _chart(values, 210, mark={"type": "line", "point": {"size": 24}, "strokeWidth": 1.6}, encoding=encoding)


def metric_curve(pairs: Sequence[tuple[float, float]], metric: str, name: str, best_epoch: int | None) -> Spec:
    """Draw a metric on val by epoch, pairs (epoch, value), with the best epoch marked."""
    share = is_share(metric)
    values = [{"epoch": x, "value": y, "best": x == best_epoch} for x, y in pairs if math.isfinite(y)]
    encoding = {
        "x": _axis("epoch", "epoch", axis={"tickMinStep": 1}),
        "y": _axis("value", name, share=share, scale={"zero": False}),
        "tooltip": [_tip("epoch", "epoch"), _tip("value", name, share=share)],
    }
    size = {"condition": {"test": "datum.best", "value": 130}, "value": 24}
    marks = [
        {"mark": {"type": "line", "color": COLOURS[0], "strokeWidth": 1.6}},
        {"mark": {"type": "point", "color": COLOURS[0], "filled": True}, "encoding": {"size": size}},
    ]
    return _chart(values, 210, layer=marks, encoding=encoding)


def budget_chart(shares: Shares) -> Spec:
    """Draw which share of each matrix its budget keeps at the end, by block and kind."""
    values = [
        {
            "block": block,
            "kind": kind or "others",
            "kept": float(share[row, -1]),
            "text": f"{share[row, -1]:.0%}",
        }
        for kind, share in shares.kinds.items()
        for row, block in enumerate(shares.blocks)
        if not math.isnan(share[row, -1])
    ]
    order = {"sort": None, "axis": {"title": None, "labelAngle": 0}}
    encoding = {
        "x": {"field": "kind", "type": "nominal", **order},
        "y": {"field": "block", "type": "nominal", "sort": None, "axis": {"title": "block"}},
        "tooltip": [_tip("block", "block", nominal=True), _tip("kind", "matrix", nominal=True),
                    _tip("kept", "kept", share=True)],
    }  # fmt: skip
    return _chart(values, 24 * len(shares.blocks), layer=_heat("kept"), encoding=encoding)


def _heat(field: str) -> list[Spec]:
    """Return the layers of a heat map: cells as dark as their share, and their `text` written in."""
    return [
        {
            "mark": {"type": "rect", "fill": COLOURS[0], "stroke": "var(--page)", "cursor": "pointer"},
            "encoding": {"fillOpacity": _opacity(field)},
        },
        {
            "mark": {"type": "text", "fontSize": 11, "cursor": "pointer"},
            "encoding": {
                "text": {"field": "text"},
                "color": {"condition": {"test": f"datum.{field} > 0.5", "value": "var(--on-blue)"}, "value": INK},
            },
        },
    ]


def _opacity(field: str) -> Spec:
    return {"field": field, "type": "quantitative", "legend": None, "scale": {"domain": [0, 1], "range": [0.05, 1]}}


ORDERS = ("as given", "least recall", "most images", "name")  # of a confusion matrix
SHORT = 3  # letters of the names of classes that stand upright
WRITTEN = 14  # classes up to which each cell bears its number


def confusion_chart(cells: Sequence[Mapping[str, Any]], classes: int) -> Spec:
    """Draw a confusion matrix whose rows and columns can be put into another order.

    Args:
        cells: {"true", "predicted": names, "share": of the true class, "count", "text": written in, "cell": key of its
            gallery, "true_0" ..., "predicted_0" ...: the places of the two in each of ORDERS}.
        classes: how many.
    """
    params = [{
        "name": "order", "value": ORDERS[0],
        "bind": {"input": "select", "options": list(ORDERS), "name": "Order of the classes "},
    }]  # fmt: skip

    def place(of: str) -> str:
        text = f"datum.{of}_{len(ORDERS) - 1}"
        for i, order in reversed(list(enumerate(ORDERS[:-1]))):
            text = f"order == '{order}' ? datum.{of}_{i} : {text}"
        return text

    angle = 0 if max(len(str(cell["true"])) for cell in cells) <= SHORT else -45
    transform = [{"calculate": place(of), "as": f"{of}_place"} for of in ("true", "predicted")]
    encoding = {
        of: {"field": field, "type": "nominal", "sort": {"field": f"{field}_place", "op": "min"},
             "axis": {"title": title, "labelLimit": 90, **({"labelAngle": angle} if of == "x" else {})}}
        for of, field, title in (("x", "predicted", "predicted class"), ("y", "true", "true class"))
    }  # fmt: skip
    tips = [_tip("true", "is", nominal=True), _tip("predicted", "told", nominal=True), _tip("count", "images"),
            _tip("share", "of the class", share=True)]  # fmt: skip
    layers = _heat("share")
    layers = layers if classes <= WRITTEN else layers[:1]
    height = classes * (30 if classes <= WRITTEN else 14)
    return _chart(
        cells, height, params=params, transform=transform, layer=layers, encoding={**encoding, "tooltip": tips}
    )


def reliability_chart(bins: Mapping[str, Sequence[Any]]) -> Spec:
    """Draw accuracy by confidence, of `calibration.Bin`s by name: on the line they are equal."""
    values = [
        {"of": name, "confidence": b.confidence, "accuracy": b.accuracy, "count": b.count}
        for name, found in bins.items()
        for b in found
    ]
    line = {
        "data": {"values": [{"v": 0}, {"v": 1}]},
        "mark": {"type": "line", "color": GREY, "strokeDash": [4, 3], "strokeWidth": 1},
        "encoding": {"x": {"field": "v", "type": "quantitative"}, "y": {"field": "v", "type": "quantitative"}},
    }
    whole = {"scale": {"domain": [0, 1]}}
    points = {
        "mark": {"type": "line", "point": {"size": 36}, "strokeWidth": 1.6},
        "encoding": {
            "x": _axis("confidence", "confidence", share=True, **whole),
            "y": _axis("accuracy", "accuracy", share=True, **whole),
            "color": {"field": "of", "type": "nominal", "scale": {"domain": list(bins), "range": COLOURS}},
            "tooltip": [_tip("of", "", nominal=True), _tip("confidence", "confidence", share=True),
                        _tip("accuracy", "accuracy", share=True), _tip("count", "images")],
        },
    }  # fmt: skip
    return _chart(values, 260, layer=[line, points])


def coverage_chart(answered: Sequence[float], accuracy: Sequence[float]) -> Spec:
    """Draw the accuracy of the surest images by the share of the images that they are."""
    values = _thinned([{"answered": x, "accuracy": y} for x, y in zip(answered, accuracy, strict=True)])
    encoding = {
        "x": _axis("answered", "share of the images that are answered", share=True, scale={"domain": [0, 1]}),
        "y": _axis("accuracy", "accuracy of these", share=True, scale={"zero": False}),
        "tooltip": [_tip("answered", "answered", share=True), _tip("accuracy", "accuracy", share=True)],
    }
    mark = {"type": "line", "color": COLOURS[0], "strokeWidth": 1.8, "point": {"size": 12, "opacity": 0}}
    return _chart(values, 230, mark=mark, encoding=encoding)


def scatter_chart(true: Sequence[float], predicted: Sequence[float], names: Sequence[str], title: str) -> Spec:
    """Draw predicted against true values of a quantity; on the line they are equal."""
    triples = zip(true, predicted, names, strict=True)
    values = [{"true": x, "predicted": y, "image": name, "cell": f"image:{name}"} for x, y, name in triples]
    ends = [min(*true, *predicted), max(*true, *predicted)]
    line = {
        "data": {"values": [{"v": value} for value in ends]},
        "mark": {"type": "line", "color": GREY, "strokeDash": [4, 3], "strokeWidth": 1},
        "encoding": {"x": {"field": "v", "type": "quantitative"}, "y": {"field": "v", "type": "quantitative"}},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 28, "color": COLOURS[0], "opacity": 0.55},
        "encoding": {
            "x": _axis("true", f"true {title}", scale={"zero": False}),
            "y": _axis("predicted", f"predicted {title}", scale={"zero": False}),
            "tooltip": [_tip("image", "image", nominal=True), _tip("true", "true"), _tip("predicted", "predicted")],
        },
    }
    return _chart(values, 300, layer=[line, points])


def interval_chart(rows: Sequence[Mapping[str, Any]], title: str, *, share: bool, zero: bool = False) -> Spec:
    """Draw a point with an interval for each name, one below the other: rows of {"name", "value", "low", "high"}.

    `zero`: with a line at 0, as for differences.
    """
    encoding = {
        "y": {"field": "name", "type": "nominal", "sort": None, "axis": {"title": None, "labelLimit": 160}},
        "tooltip": [_tip("name", "", nominal=True), _tip("value", title, share=share), _tip("low", "from", share=share),
                    _tip("high", "to", share=share)],
    }  # fmt: skip
    x = _axis("value", title, share=share, scale={"zero": False}, axis={"format": ".1%"} if share else {})
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": COLOURS[0]},
            "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {"mark": {"type": "point", "filled": True, "size": 90, "color": COLOURS[0]}, "encoding": {"x": x}},
    ]
    if zero:
        rule = {"mark": {"type": "rule", "strokeDash": [4, 3], "color": GREY}, "encoding": {"x": {"datum": 0}}}
        layers.insert(0, {**rule, "encoding": {**rule["encoding"], "y": None, "tooltip": None}})
    return _chart(rows, 28 * len(rows), layer=layers, encoding=encoding)


def costs_chart(rows: Sequence[Mapping[str, Any]], title: str, *, share: bool) -> Spec:
    """Draw scores against peak memory: rows of {"name", "value", "low", "high", "megabytes"}."""
    y = _axis("value", title, share=share, scale={"zero": False}, axis={"format": ".1%"} if share else {})
    tips = [_tip("name", "", nominal=True), _tip("value", title, share=share), _tip("megabytes", "MB")]
    x = _axis("megabytes", "peak memory of a training step, MB", scale={"zero": False, "padding": 24})
    layers = [
        {
            "mark": {"type": "rule", "color": COLOURS[0]},
            "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {"mark": {"type": "point", "filled": True, "size": 80, "color": COLOURS[0]}, "encoding": {"y": y}},
        {
            "mark": {"type": "text", "dy": -12, "color": INK, "fontSize": 12},
            "encoding": {"y": y, "text": {"field": "name"}},
        },
    ]  # fmt: skip
    return _chart(rows, 260, layer=layers, encoding={"x": x, "tooltip": tips})
