"""The report: verdicts either way, a page that needs nothing from outside, figures and tables."""

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from synthetic_summary import make_summary

from pikv_agents.report import html, tables
from pikv_agents.report.html import draw_all, render, write_report
from pikv_agents.report.schema import check_evaluation, check_summary, load_summary
from pikv_agents.report.style import save, to_svg
from pikv_agents.report.verdict import counted_families, counting, judge, role, verdict


@pytest.fixture(scope="module")
def summary():
    return make_summary()


def one_family(learned, rivals, **family):
    """An evaluation of one held-out family; policies map to (J, ci95 or None) or to a list of scores."""
    rows = {}
    for name, given in {"learned": learned, **rivals}.items():
        scores = given if isinstance(given, list) else []
        value = sum(scores) / len(scores) if scores else given[0]
        rows[name] = {"J": value, "latency": value, "memory": 0.0, "fidelity": 1.0}
        rows[name] |= {"scores": scores} if scores else {"ci95": given[1]}
    iqm = {name: {"J": row["J"], "ci95": row.get("ci95")} for name, row in rows.items()}
    block = {"split": "test", "headroom": 0.3, "policies": rows} | family
    return {"lambda1": 0.25, "lambda2": 10.0, "seeds": [0, 1, 2], "families": {"facts": block}, "iqm": iqm}


@pytest.mark.parametrize(
    ("learned", "baseline", "outcome"),
    [
        ((1.0, (0.9, 1.1)), (1.3, (1.2, 1.4)), "wins"),
        ((1.0, (0.9, 1.25)), (1.3, (1.2, 1.4)), "ties"),  # intervals touch
        ((1.5, (1.45, 1.6)), (1.3, (1.2, 1.4)), "loses"),
        ((1.0, None), (9.0, (8.9, 9.1)), "ties"),  # no interval, no claim
        ([1.0, 2.0, 3.0], [1.1, 2.1, 3.1], "wins"),  # wide spread, but better on every workload
        ([1.0, 2.0, 3.0], [1.1, 1.8, 3.1], "ties"),
        ([1.1, 2.1, 3.1], [1.0, 2.0, 3.0], "loses"),
    ],
)
def test_verdict_follows_the_intervals(learned, baseline, outcome):
    evaluation = one_family(learned, {"lru": baseline})
    found = verdict(evaluation)
    assert found.outcome == found.families[0].outcome == outcome
    assert ("does not beat" in found.sentence) == (outcome != "wins")
    assert "lru" in found.sentence
    rows = evaluation["families"]["facts"]["policies"]
    assert judge(rows["learned"], rows["lru"]) == outcome


def test_the_rival_is_the_best_that_one_could_deploy():
    rivals = {"lru": (2.0, (1.9, 2.1)), "static_global": (1.5, (1.4, 1.6)), "static_tuned": (1.2, (1.1, 1.3))}
    found = verdict(one_family((1.7, (1.65, 1.75)), rivals))
    assert (found.baseline, found.outcome) == ("static_global", "loses")
    assert found.gate_failures == ("facts",)


@pytest.mark.parametrize(
    ("tuned", "promoted"),
    [({"static_tuned": [0.99] * 3}, True), ({"static_tuned": [0.9] * 3}, False), ({}, False)],
)
def test_promotion_needs_a_win_and_no_regression_from_static_tuned(tuned, promoted):
    found = verdict(one_family([1.0] * 3, {"lru": [1.2] * 3} | tuned))
    assert found.outcome == "wins"
    assert found.promoted is promoted


def test_only_held_out_families_with_headroom_count(summary):
    assert counted_families(summary["evaluation"]) == ["needle", "mooncake-chat", "regime-shift"]
    assert counted_families(one_family((1, None), {"lru": (1, None)}, headroom=0.02)) == ["facts"]


def test_what_counts_is_said_truly(summary):
    assert "at least 10% headroom" in counting(summary["evaluation"]).rule
    little = one_family((1, None), {"lru": (1, None)}, headroom=0.01)
    assert counting(little).rule.endswith("none of them has 10% headroom")
    little["families"]["facts"].pop("headroom")
    assert counting(little).rule.endswith("their headroom is not known here")
    page = render(summary | {"evaluation": one_family((1, None), {"lru": (1, None)}, headroom=0.01)})
    assert "none of them has 10% headroom" in page and "and has at least" not in page
    trained = one_family((1, None), {"lru": (1, None)})
    trained["families"]["facts"]["split"] = "near copy of facts-poisson"
    assert "this is no test" in counting(trained).rule


def test_a_cell_whose_pressure_is_not_reached_does_not_count(summary):
    evaluation = copy.deepcopy(summary["evaluation"])
    evaluation["families"]["needle"] |= {"pressure": 4.0, "pressure_reached": 3.7}
    assert counted_families(evaluation) == ["mooncake-chat", "regime-shift"]
    evaluation["families"]["needle"]["pressure_reached"] = 3.81
    assert counted_families(evaluation)[0] == "needle"
    for row in evaluation["families"].values():
        row |= {"pressure": 4.0, "pressure_reached": 1.0}
    assert "none reaches its pressure" in counting(evaluation).rule


def test_a_pressure_out_of_reach_is_shown(summary):
    told = [tables.pressure({"pressure": 4.0, "pressure_reached": r}) for r in (4.0, 3.9, 1.58)]
    assert told == ["4", "4 (3.9)", "4 (1.6)*"]
    evaluation = copy.deepcopy(summary["evaluation"])
    evaluation["families"]["needle"]["pressure_reached"] = 0.8
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.families(evaluation))
    text = console.export_text()
    assert re.search(r"needle \(test\).*\n +pressure 1\.6 \(0\.8\)\* ", text)
    assert re.search(r"regime-shift \(test\).*\n +pressure 1\.6  ", text)


def test_roles_by_name_or_as_given(summary):
    evaluation = summary["evaluation"] | {"roles": {"ppo-3": "learned"}}
    roles = [role(evaluation, policy) for policy in ("ppo-3", "learned-b", "lru", "oracle")]
    assert roles == ["learned", "learned", "heuristic", "reference"]


def test_verdict_names_what_is_missing(summary):
    with pytest.raises(ValueError, match="'ppo' is not evaluated: allowed capped_exact"):
        verdict(summary["evaluation"], "ppo")
    with pytest.raises(ValueError, match="no heuristic among learned"):
        verdict(one_family((1, None), {}))


class Page(HTMLParser):
    """Collects addresses, tags and text; counts that every tag is closed."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages(summary):
    """The whole page of a win and of a loss: drawing takes seconds, so the tests share them."""
    return {"wins": render(summary), "loses": render(make_summary(1.0))}


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their figures, for tests about the text."""
    monkeypatch.setattr(html, "to_svg", lambda figure: "<svg></svg>")
    for module, names in (
        (html.figures, ("overall", "cost_parts", "training", "coverage")),
        (html.headroom_figure, ("headroom",)),
        (html.timeline, ("pages", "decisions")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda section: Figure())


@pytest.mark.parametrize(("outcome", "badge"), [("wins", "It wins"), ("loses", "It loses")])
def test_page_is_self_contained_and_says_the_verdict(pages, outcome, badge):
    text = pages[outcome]
    page = Page(text)
    assert page.open == []
    assert badge in text
    assert page.tags.count("figure") == page.tags.count("svg") == 7
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(text) < 1_500_000


def test_a_loss_is_as_visible_as_a_win(pages):
    for word, text in pages.items():
        assert text.index(f'class="verdict {word}"') < text.index("Which policy costs least?")
    assert "does not beat the best heuristic" in pages["loses"]


@pytest.mark.parametrize("section", ["coverage", "headroom", "training", "evaluation", "policy", "live", "timeline"])
def test_every_section_may_be_absent(summary, section, undrawn):
    page = Page(render({key: value for key, value in summary.items() if key != section}))
    assert page.open == []


def test_sparse_summaries_render(summary, undrawn):
    assert "How this was made" in render({"meta": summary["meta"] | {"stages": [], "versions": {}}})
    evaluation = one_family((1.0, None), {"lru": (1.2, None)}, headroom=None)
    assert "No difference shown" in render({"meta": summary["meta"], "evaluation": evaluation})
    del evaluation["iqm"]["learned"]
    assert "Family by family" not in render({"meta": summary["meta"], "evaluation": evaluation})
    training = {"curve": [], "seconds": 1.0, "steps_per_second": 2.0}
    assert "How was it trained?" in render({"meta": summary["meta"], "training": training})


def test_text_is_escaped(summary, undrawn):
    changed = summary | {"verdict": ["<b>bold & sly</b>"]}
    assert "&lt;b&gt;bold &amp; sly" in render(changed)


def test_the_page_is_the_same_every_time(summary, tmp_path, undrawn):
    first = write_report(summary, tmp_path / "a" / "report.html").read_bytes()
    assert write_report(summary, tmp_path / "report.html").read_bytes() == first


def test_a_figure_is_the_same_every_time(summary):
    first, second = (to_svg(html.headroom_figure.headroom(summary["headroom"])) for _ in range(2))
    assert first == second


def test_headroom_at_several_pressures_says_what_is_not_reached(summary):
    row = summary["headroom"][0] | {"family": "needle-onoff", "headroom": 0.4}
    rows = [row | {"pressure": p, "pressure_reached": min(p, 1.9)} for p in (0.5, 1.0, 2.0, 4.0)]
    text = to_svg(html.headroom_figure.headroom(rows))
    # 1.9 is near enough to 2 to count as it, and not to 4; a cell that does not count shows no percentage.
    assert text.count("40%") == 3 and text.count("only 1.9 reached") == 1
    alone = to_svg(html.headroom_figure.headroom([row | {"pressure": 4.0, "pressure_reached": 1.9}]))
    assert "reaches 1.9 of 4" in alone


def test_the_best_rival_of_a_cell_and_its_levers_are_drawn(summary):
    costs = {"latency": 1.0, "memory": 0.0, "fidelity": 1.0}
    policies = {name: costs | {"J": J} for name, J in (("static_tuned", 2.0), ("cma_es", 1.9), ("greedy", 1.0))}
    levers = {"retention": {"J": 1.5, "gain": 0.25}, "both": {"J": 1.2, "gain": 0.4}}
    row = summary["headroom"][0] | {"policies": policies, "headroom": 0.5, "levers": levers, "pressure_reached": 1.0}
    rows = [row | {"pressure": 1.0}, row | {"pressure": 2.0, "headroom": 0.02, "pressure_reached": 2.0}]
    assert html.headroom_figure.best_rival(row) == "cma_es", "greedy and static_tuned cannot be deployed"
    assert to_svg(html.headroom_figure.headroom(rows)).count("best rival +5%") == 2
    drawn = to_svg(html.headroom_figure.levers(rows))
    assert "pressure 1<" in drawn and "pressure 2<" not in drawn, "only cells that count"
    assert "retention" in drawn


def test_figures_of_all_sections(summary, tmp_path):
    drawn = draw_all(check_summary(summary))
    assert list(drawn) == ["overall", "cost_parts", "training", "coverage", "headroom", "pages", "decisions"]
    assert save(drawn["headroom"], tmp_path / "headroom.png").stat().st_size > 10_000
    svg = to_svg(drawn["headroom"])
    assert svg.startswith("<svg viewBox=") and "metadata" not in svg


def test_a_bar_off_the_scale_is_labelled_with_its_value(summary):
    evaluation = copy.deepcopy(summary["evaluation"])
    for name in ("lru", "h2o", "arc", "streaming_llm"):
        for block in evaluation["families"].values():
            del block["policies"][name]
        del evaluation["iqm"][name]
    total = evaluation["families"]["needle"]["policies"]["capped_exact"]["J"]
    svg = to_svg(html.figures.cost_parts(evaluation))
    assert f"{total:.1f} →" in svg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["meta"].pop("commit"), r"summary, meta\.commit: Field required"),
        (lambda s: s["training"].update(seconds=float("nan")), r"training\.seconds: .*finite"),
        (
            lambda s: s["evaluation"]["families"]["facts"]["policies"]["lru"].pop("J"),
            r"facts\.policies\.lru\.J",
        ),
        (lambda s: s["live"]["rows"][0].update(where="moon"), r"live\.rows\.0\.where: .*'trace' or 'live'"),
        (lambda s: s["timeline"]["runs"][0]["queue"].pop(), "queue has 239 values, time_s has 240"),
    ],
)
def test_wrong_summaries_name_the_place(summary, change, message):
    broken = copy.deepcopy(summary)
    change(broken)
    with pytest.raises(ValueError, match=message):
        check_summary(broken)


def test_summaries_survive_json(summary, tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    assert verdict(load_summary(path)["evaluation"]) == verdict(check_evaluation(summary["evaluation"]))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (lambda s: tables.coverage(s["coverage"]), ["centroid", "63%"]),
        (lambda s: tables.headroom(s["headroom"]), ["mooncake-chat", "tuned", "35%"]),
        (lambda s: tables.evaluation(s["evaluation"]), ["learned", "reference", "counted: needle"]),
        (lambda s: tables.families(s["evaluation"]), ["regime-shift (test)", "worst"]),
        (lambda s: tables.live(s["live"]), ["2 rank(s)", "trace", "412", "yes"]),
    ],
)
def test_terminal_tables(summary, table, words):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(summary))
    text = console.export_text()
    assert all(word in text for word in words)


def test_one_overloaded_workload_does_not_decide():
    scores = {"learned": [1.0] * 9 + [2.0], "lazy/h2o": [0.98] * 9 + [40.0]}
    rows = {
        name: {"J": sum(js) / 10, "latency": 1.0, "memory": 0.0, "fidelity": 1.0, "scores": js}
        for name, js in scores.items()
    }
    iqm = {name: {"J": js[0]} for name, js in scores.items()}
    evaluation = {
        "lambda1": 0.25, "lambda2": 10.0, "seeds": list(range(10)), "iqm": iqm,
        "families": {"needle-onoff": {"split": "test", "policies": rows}},
    }  # fmt: skip
    found = verdict(check_evaluation(evaluation))
    assert found.outcome != "wins" and found.relative == pytest.approx(0.02 / 0.98, rel=1e-6)
