from itertools import combinations

import numpy as np
import pytest
from guardlit_callbacks.figures import (
    LINES,
    MARKERS,
    PALETTE,
    Band,
    ProxyGoldCurve,
    RatioSamples,
    frontier_figure,
    gradient_figure,
    proxy_gold_figure,
    ratio_figure,
    run_frontier_figure,
    training_figure,
    turning_point,
)
from guardlit_callbacks.figures.proxy_gold import first_spread
from guardlit_callbacks.frontier import Curve
from guardlit_callbacks.tools.logging import figure_to_array
from guardlit_callbacks.tools.statistics import clip_fractions, clip_range, max_over_min, moments, step_index
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def drawn(figure):
    picture = figure_to_array(figure)
    assert min(picture.shape[:2]) > 200
    assert picture.std() > 10
    return picture


def texts(figure):
    figure.canvas.draw()
    axes = [a for a in figure.axes]
    legends = [
        text.get_text()
        for box in [*figure.legends, *(a.get_legend() for a in axes if a.get_legend())]
        for text in box.texts
    ]
    return [t.get_text() for a in axes for t in [*a.texts, a.title, a.xaxis.label, a.yaxis.label]] + legends


def samples(seed=0, n=500):
    rng = np.random.default_rng(seed)
    step = np.repeat(np.arange(4), n)
    ratio = rng.normal(-0.5, 1, 4 * n) * np.repeat([1e-6, 2e-6, 4e-6, 8e-6], n)
    clipped = np.abs(ratio) > 4e-6
    return RatioSamples(step, ratio, clipped, clip_range(ratio, clipped)[None])


def test_ratio_figure_shows_each_steps_mean_over_std_and_clip_fractions():
    given = samples()
    figure = ratio_figure(
        {"Flow-GRPO": given, "GRPO-Guard": RatioSamples(given.step, -given.log_ratio)}, title="round 3"
    )
    drawn(figure)
    words = texts(figure)
    assert {"Flow-GRPO", "GRPO-Guard", "log ratio (dimensionless)", "denoising step (0 = most noise)"} <= set(words)
    assert "clipped (%)\n← below    above →" in words
    assert len(figure.axes) == 3  # the second has no clipping
    shown = [float(word) for word in words if word.startswith(("+", "-"))]
    expected = [moments(given.log_ratio[given.step == t]) for t in range(4)]
    assert shown[:4] == pytest.approx([m.mean / m.std for m in expected], abs=0.006)
    below = [bar.get_width() for bar in figure.axes[1].containers[0]]
    assert below[3] == pytest.approx(
        -100 * np.mean(given.clipped[given.step == 3] & (given.log_ratio[given.step == 3] < 0))
    )


def test_clip_fractions_of_all_panels_have_one_scale():
    few = RatioSamples(samples().step, samples().log_ratio, np.zeros(samples().step.size, bool))
    _, bars, _, other = ratio_figure({"a": samples(), "b": few}).axes
    assert bars.get_xlim() == other.get_xlim()
    assert bars.get_xlim()[1] >= max(abs(bar.get_width()) for bar in bars.patches)


def test_ratio_figure_of_a_first_update_where_every_ratio_is_one():
    drawn(ratio_figure({"objective": RatioSamples(np.arange(3), np.zeros(3), np.zeros(3, bool))}))


def test_ratio_figure_of_panels_with_other_steps():
    few = RatioSamples(np.array([5, 5, 6]), np.array([0.1, 0.2, 0.3]), np.array([True, False, False]))
    assert len(ratio_figure({"a": samples(), "b": few}).axes) == 4


def test_gradient_figure_names_max_over_min():
    curves = {"Flow-GRPO": {0: 0.05, 1: 0.2, 2: 1.0}, "GRPO-Guard": {0: 0.5, 1: 1.0, 2: 0.8}, "still": {0: 0.0, 1: 1.0}}
    figure = gradient_figure({"d loss / d velocity": curves})
    drawn(figure)
    assert {"Flow-GRPO (max/min 20.0)", "GRPO-Guard (max/min 2.0)", "still (max/min inf)"} <= set(texts(figure))
    assert figure.axes[0].get_yscale() == "log"


NAMES = ["FlowGRPO (clip_range 0.001)", "GRPO-Guard", "MeanRevised", "RatioNorm (clip_range 4e-06)", "e", "f"]


def figures_of(n):
    """Every figure of `n` methods, with a title and without."""
    step, names = np.arange(4) * 1000, NAMES[:n]
    gold = {name: ProxyGoldCurve(step, step + 1.0, step - 0.5, step - 0.6, step - 0.4, 2.0) for name in names}
    paths = np.array([[0.5, 0.7, 0.9, 0.8], [0.5, 0.75, 0.92, 0.85]])
    other = RatioSamples(samples().step, 7.0 * samples().log_ratio)
    slopes = {name: {t: 1e-7 * 3.0**t for t in range(10)} for name in names}
    bands = {name: Band(step, step * 1e-6, step * 0.0, step * 1e-5, 2) for name in names}
    for title in ("", "round 3"):
        yield ratio_figure(dict.fromkeys(names[:2], samples()), title=title)
        yield ratio_figure({"log ratio in the objective": samples(), "raw log ratio": other}, title=title)
        yield gradient_figure({"d loss / d velocity": slopes, "d loss / d parameters": slopes}, title=title)
        yield proxy_gold_figure(gold, title=title)
        for axes in ({"proxy": paths}, {"proxy": paths, "sqrt_kl": 1000 * paths}):
            path = Curve(step, 1 - paths**2, axes)
            yield frontier_figure(dict.fromkeys(names, path), title=title)
            yield run_frontier_figure(path, title=title)
        for panels in (1, 2, 5):
            keys = ["gradient/velocity/max_over_min", "reward/x_mean", "c", "d", "e"][:panels]
            yield training_figure(dict.fromkeys(keys, ("largest abs(mean) / std", bands)), title=title)


def test_training_curves_are_told_apart_without_color_and_one_point_is_visible():
    def curve(*values):
        return Band(np.arange(len(values)), *[np.array(values)] * 3)

    figure = training_figure({"a": ("reward", {"m": curve(0.5), "n": curve(0.5, 0.6)}), "b": ("", {"n": curve(0.5)})})
    first, second = figure.axes[:2]
    assert [line.get_marker() for line in first.lines] == ["o", "s"]
    assert [line.get_marker() for line in second.lines] == ["s"]


@pytest.mark.parametrize("n", [1, 2, 6])
def test_no_text_leaves_its_figure_or_lies_on_another(n, monkeypatch):
    shown, draw = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, renderer: shown.append(text) or draw(text, renderer))
    for figure in figures_of(n):
        shown.clear()
        drawn(figure)
        width, height = figure.canvas.get_width_height()
        boxes = {text: text.get_window_extent() for text in shown if text.get_visible() and text.get_text().strip()}
        page = Bbox([[-1, -1], [width + 1, height + 1]])
        assert [t for t, box in boxes.items() if not (page.contains(*box.min) and page.contains(*box.max))] == []
        pairs = combinations(boxes, 2)
        assert [(a, b) for a, b in pairs if boxes[a].padded(-1).overlaps(boxes[b].padded(-1))] == []


def test_a_flat_gradient_looks_flat_and_its_axis_has_numbers():
    figure = gradient_figure({"d loss / d velocity": {"GRPO-Guard": {0: 0.021, 1: 0.022, 2: 0.024}}})
    drawn(figure)
    low, high = figure.axes[0].get_ylim()
    assert high / low == pytest.approx(10)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    numbers = [float(text.replace("\N{MINUS SIGN}", "-")) for text in shown if text]
    assert len([n for n in numbers if low <= n <= high]) >= 3


def test_proxy_gold_figure_marks_the_best_gold_only_where_it_falls_beyond_its_noise():
    step, gold = np.arange(4) * 10, np.array([1.0, 1.1, 1.0, 0.8])
    falling = ProxyGoldCurve(step, np.array([0.5, 0.6, 0.7, 0.75]), gold, gold - 0.05, gold + 0.05)
    steady = ProxyGoldCurve(step, None, gold, gold - 0.5, gold + 0.5)
    figure = proxy_gold_figure({"a": falling, "b": steady})
    drawn(figure)
    above, below = figure.axes
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    rings = [line.get_xdata()[0] for line in below.lines if line.get_markersize() == 11]
    assert rings == [10]
    assert "best gold" in texts(proxy_gold_figure({"run": falling}))
    assert "best gold" not in texts(proxy_gold_figure({"run": steady}))
    assert above.lines[0].get_ydata().tolist() == pytest.approx([0, 0.1, 0.2, 0.25])
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [10]


@pytest.mark.parametrize("start", [-0.1343, 0.0, 1e-9, 0.6])
def test_the_proxys_change_is_in_standard_deviations_of_the_start_for_every_sign(start):
    ones, proxy = np.ones(3), start + np.array([0.0, 0.05, -0.1])
    figure = proxy_gold_figure({"run": ProxyGoldCurve(np.arange(3), proxy, ones, ones, ones, spread=0.2)})
    drawn(figure)
    assert figure.axes[0].lines[0].get_ydata().tolist() == pytest.approx([0, 0.25, -0.5])
    assert figure.axes[0].get_ylabel() == "proxy: change\n(std at the start)"


def test_a_small_change_of_the_proxy_looks_small():
    ones, proxy = np.ones(2), np.array([-0.1343, -0.1326])
    figure = proxy_gold_figure({"run": ProxyGoldCurve(np.arange(2), proxy, ones, ones, ones, spread=0.05)})
    drawn(figure)
    low, high = figure.axes[0].get_ylim()
    drawn_change = np.diff(figure.axes[0].lines[0].get_ydata())[0]
    assert drawn_change == pytest.approx(0.0017 / 0.05)
    assert drawn_change < 0.05 * (high - low)


def test_without_a_standard_deviation_the_proxys_change_is_in_its_own_unit():
    ones, proxy = np.ones(2), np.array([-2.0, 3.0])
    curves = {str(spread): ProxyGoldCurve(np.arange(2), proxy, ones, ones, ones, spread) for spread in (0.5, None)}
    figure = proxy_gold_figure(curves)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines[:2]] == [[0, 5]] * 2
    assert figure.axes[0].get_ylabel() == "proxy: change\n(its own unit)"


def test_the_spread_at_the_start_is_the_first_above_zero():
    assert first_spread(np.array([np.nan, 0.0, 0.3, 0.4])) == 0.3
    assert first_spread(np.zeros(2)) is None


def test_ratio_figure_shows_the_clip_range_and_how_wide_another_panels_axis_is():
    given = samples()
    figure = ratio_figure({"clipped": given, "raw": RatioSamples(given.step, 12 * given.log_ratio)})
    drawn(figure)
    dashed = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([-4e-6, 4e-6], rel=0.01)
    assert texts(figure).count(" clip ") == 2
    assert [axes.get_title() for axes in figure.axes[::2]] == ["clipped", "raw\n(axis 12 times as wide as the first)"]


def test_the_clip_range_is_between_the_last_kept_and_the_first_clipped_sample():
    ratio, clipped = np.array([-3.0, -1.0, 0.5, 2.0, 4.0]), np.array([1, 0, 0, 0, 1], bool)
    assert clip_range(ratio, clipped).tolist() == [-2.0, 3.0]
    low, high = clip_range(ratio, ratio > 3)
    assert np.isnan(low)
    assert high == 3.0
    assert np.isnan(clip_range(np.zeros(3), np.zeros(3, bool))).all()


def test_statistics():
    m = moments(np.array([1.0, 1.0, 4.0]))
    assert tuple(m) == pytest.approx((2.0, 2**0.5, 2**-0.5))
    assert m.shift == pytest.approx(2**0.5)
    assert (moments(np.zeros(3)).shift, moments(np.ones(3)).shift) == (0.0, np.inf)
    assert np.isnan(moments(np.zeros(0))).all()
    assert clip_fractions(np.array([-2.0, 2.0, 3.0, 0.1]), np.array([1, 1, 1, 0])) == (0.5, 0.25)
    assert step_index(np.array([3.0, 0.0])).tolist() == [3, 0]
    assert step_index(np.array([0.25, 1.0, 0.5, 0.25])).tolist() == [2, 0, 1, 2]
    assert max_over_min({0: 2.0, 1: 8.0}) == 4.0
    assert np.isnan(max_over_min({}))


@pytest.mark.parametrize(
    ("gold", "proxy", "noise", "expected"),
    [
        ([1.0, 1.2, 0.9], [1, 2, 3], 0.05, 1),
        ([1.0, 1.2, 0.9], [1, 2, 1.5], 0.05, None),  # the proxy fell as well
        ([1.0, 1.2, 0.9], None, 0.05, 1),
        ([1.0, 1.2, 1.1], [1, 2, 3], 0.08, None),  # 0.1 is less than hypot(0.08, 0.08)
        ([1.0, 0.9, 0.8], [1, 2, 3], 0.05, 0),
        ([1.0, 1.1, 1.2], [1, 2, 3], 0.05, None),
    ],
)
def test_the_turning_point_is_the_best_gold_before_a_fall_beyond_noise_while_the_proxy_rises(
    gold, proxy, noise, expected
):
    gold = np.array(gold)
    given = None if proxy is None else np.array(proxy)
    assert turning_point(ProxyGoldCurve(np.arange(3), given, gold, gold - noise, gold + noise)) == expected


def test_fourteen_methods_can_be_told_apart():
    assert len(PALETTE) == len(MARKERS) == len(LINES) == 14
    assert len({color.lower() for color in PALETTE}) == len(set(MARKERS)) == 14
    curves = {f"method {i}": {0: 1.0 + i, 1: 2.0 + i} for i in range(14)}
    (axes,) = gradient_figure({"velocity": curves}).axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert looks == set(zip(PALETTE, MARKERS, LINES, strict=True))
    colors = np.array([to_rgb(color) for color in PALETTE])
    apart = [np.abs(a - b).sum() for a, b in combinations(colors, 2)]
    assert min(apart) > 0.25
