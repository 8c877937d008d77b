"""Terms by name: of the right number, in the right order, inside the spaces, and the same in the documents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from trace_kit import SMALL, library

import pikv_env
from pikv_env.builtin import make_config
from pikv_env.terms import describe
from pikv_runtime.contract import CONTRACT_HASH, GLOBAL_CONTROLS, GLOBAL_FEATURES, GROUP_CONTROLS, GROUP_FEATURES
from pikv_runtime.control_views import DISCRETE_GRID, VIEWS
from pikv_runtime.views.coef import COEF_TERM_COUNT

DOCS = Path(__file__).parents[2] / "docs"


def table_of(text: str, heading: str) -> list[list[str]]:
    """The rows of the first Markdown table after `**heading**`, cells stripped of spaces and backquotes."""
    after = text.split(f"**{heading}**", 1)[1]
    rows = re.search(r"(\|.*\n)+", after).group().splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("control", list(VIEWS))
def test_terms_fit_the_spaces(control: str) -> None:
    env = gym.make("PiKV/Trace-v0", library=library(), control=control, **SMALL)
    found, spaces = env.unwrapped.describe(), env.unwrapped.spaces
    assert pikv_env.make_sb3(library=library(), control=control, **SMALL).describe() == found
    assert [t.name for t in found.observation] == spaces.names
    assert [t.index for t in found.observation] == list(range(len(spaces.names)))
    np.testing.assert_array_equal(np.float32([t.low for t in found.observation]), env.observation_space.low)
    np.testing.assert_array_equal(np.float32([t.high for t in found.observation]), env.observation_space.high)
    if control == "discrete":
        assert [t.high + 1 for t in found.action] == env.action_space.nvec.tolist()
        assert found.action[-1].meaning == "in order: lru, h2o, streaming_llm"
    else:
        np.testing.assert_array_equal([t.low for t in found.action], env.action_space.low)
        np.testing.assert_array_equal([t.high for t in found.action], env.action_space.high)
    assert len({t.name for t in found.action}) == len(found.action)
    assert all(t.unit and t.meaning for terms in found.sections().values() for t in terms)


@pytest.mark.parametrize("control", ["coef", "box"])
def test_the_ends_of_an_action_are_the_ends_that_its_term_names(control: str) -> None:
    env = gym.make("PiKV/Trace-v0", library=library(), control=control, **SMALL).unwrapped
    env.reset(seed=0)
    found, batch = env.describe(), env.batch
    first = COEF_TERM_COUNT if control == "coef" else 3 * batch.num_groups
    for sign, end in ((-1.0, "low"), (1.0, "high")):
        env.spaces.write(
            np.full((1, len(found.action)), sign, np.float32),
            batch.groups, batch.globals, batch.control_groups, batch.control_globals,
        )  # fmt: skip
        for term, column, value in zip(found.action[first:], GLOBAL_CONTROLS, batch.control_globals[0], strict=True):
            assert value == pytest.approx(getattr(column, end))
            assert term.meaning.startswith(f"{column.low:g} to {column.high:g} {column.unit}")


def test_reward_terms_make_up_the_reward() -> None:
    for floors, names in (({}, ["latency", "memory", "loss"]), ({"fidelity_floor": 0.9}, ["latency", "memory"])):
        env = gym.make("PiKV/Trace-v0", library=library(), lambda1=0.5, lambda2=3.0, **floors, **SMALL)
        terms = env.unwrapped.describe().reward
        assert [t.name for t in terms] == names
        env.action_space.seed(0)
        env.reset(seed=0)
        *_, reward, _, _, info = [env.step(env.action_space.sample()) for _ in range(5)][-1]
        weights = {"latency": 1.0, "memory": 0.5, "loss": 3.0}
        assert reward == pytest.approx(-sum(weights[name] * info[name] for name in names))
        assert any(f"= {weights['memory']:g}" in t.meaning for t in terms)


def test_cost_terms_are_those_of_info() -> None:
    env = gym.make("PiKV/TraceConstrained-v0", library=library(), **SMALL)
    env.reset(seed=0)
    info = env.step(env.action_space.sample())[4]
    found = env.unwrapped.describe()
    assert [t.name for t in found.costs] == [n for n in info if n.startswith(("cost", "spent"))]
    assert "limit 0.05" in found.costs[2].meaning and "limit 0.1" in found.costs[4].meaning


def test_text_and_json() -> None:
    found = describe(make_config(control="box", slo=0.9), 3)
    text = str(found)
    assert "group2_layer_position" in text and "group2.evict_fraction" in text and CONTRACT_HASH in text
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["num_groups"] == 3 and len(read["observation"]) == 39 + 5 * 12 and len(read["action"]) == 26
    assert read["costs"][0]["high"] is None
    with pytest.raises(ValueError, match="did you mean 'box'"):
        describe(make_config(control="boxx"), 3)


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("Group features", GROUP_FEATURES),
        ("Global features", GLOBAL_FEATURES),
        ("Controls of a group", GROUP_CONTROLS),
        ("Global controls", GLOBAL_CONTROLS),
    ],
)
def test_the_tables_of_the_documents_are_those_of_the_contract(heading: str, columns) -> None:
    rows = table_of((DOCS / "environments.md").read_text(), heading)
    assert rows == [[c.name, c.unit, f"{c.low:g} to {c.high:g}", c.doc] for c in columns]


@pytest.mark.parametrize("control", ["coef", "discrete"])
def test_the_action_tables_of_the_documents_are_those_of_the_views(control: str) -> None:
    rows = table_of((DOCS / "environments.md").read_text(), f"Actions of `{control}`")
    terms = describe(make_config(control=control), 32).action
    assert rows == [[str(t.index), t.name, t.range, t.meaning] for t in terms]
    assert len(DISCRETE_GRID) == 6


def test_reward_and_cost_tables_of_the_documents_are_those_of_the_environment() -> None:
    found = describe(make_config(fidelity_floor=0.95, slo=0.9), 32)
    text = (DOCS / "environments.md").read_text()
    reward = describe(make_config(), 32).reward
    assert table_of(text, "Terms of the reward") == [[t.name, t.unit, t.range, t.meaning] for t in reward]
    assert table_of(text, "Terms of the costs") == [[t.name, t.unit, t.range, t.meaning] for t in found.costs]


def test_the_pages_name_their_environments_arguments() -> None:
    import inspect

    from pikv_env.runtime_env import RuntimeEnv
    from pikv_env.trace_env import TraceEnv
    from pikv_env.vector import TraceVectorEnv

    for page, kinds in (("trace-v0.md", (TraceEnv, TraceVectorEnv)), ("runtime-v0.md", (RuntimeEnv,))):
        text = (DOCS / page).read_text() + (DOCS / "environments.md").read_text()
        for kind in kinds:
            names = set(inspect.signature(kind).parameters) - {"fields", "num_envs"}
            assert not [name for name in names if f"`{name}`" not in text]
