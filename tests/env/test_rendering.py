"""`render`: pages × time as an image or text, from the ledger's own arrays, and only where it was asked for."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RenderCollection
from trace_kit import SMALL, library

import pikv_env
from pikv_env.rendering.film import CACHED, EVICTED, FREE, INT4, INT8, LABELS, NATIVE, TOP, page_states
from pikv_env.rendering.frame import LEFT, MEMORY, PAGES, PALETTE, RIGHT
from pikv_env.rendering.glyphs import write
from pikv_runtime.contract import Control, GlobalControl, GroupControl
from pikv_runtime.registry import UnknownNameError

ID = "PiKV/Trace-v0"


def make(**fields):
    return gym.make(ID, library=library(), **{**SMALL, "pressure": 0.05, **fields})


def lossy(env) -> Control:
    """Demotes and evicts, so that all states occur."""
    control = Control.neutral(env.unwrapped.batch.num_groups)
    control.groups[:, GroupControl.COMPRESSION_RATIO] = 2.5
    control.groups[:, GroupControl.EVICT_FRACTION] = 0.3
    control.globals[GlobalControl.CACHED_SHARE] = 0.5
    return control


def played(mode: str, steps: int = 14, **fields):
    env = make(render_mode=mode, **fields)
    env.reset(seed=0)
    control = lossy(env)
    for _ in range(steps):
        if env.unwrapped.step_control(control)[2]:
            break
    return env


def test_states_are_those_of_the_ledger() -> None:
    env = played("ansi", 0)
    s, control = env.unwrapped.batch.state, lossy(env)
    seen = set()
    for _ in range(20):
        env.unwrapped.step_control(control)
        states = page_states(s, 0)
        cached = (s.block_cached[0] == 1)[:, None] & (s.block_codec[0] >= 0)
        for state in (NATIVE, TOP, INT8, INT4):
            np.testing.assert_array_equal(states == state, (s.block_codec[0] == state - 1) & ~cached)
        np.testing.assert_array_equal(states == CACHED, cached)
        assert (s.block_users[0][(states == EVICTED).any(axis=1)] > 0).all()
        assert (s.block_codec[0][states <= FREE] < 0).all()
        resident = sum(int(s.codec_bytes[c]) * np.count_nonzero(s.block_codec[0] == c) for c in range(4))
        ghosts = int(s.ghost_bytes) * int(np.count_nonzero(s.page_ghost[0]))
        assert resident + ghosts == s.bytes_rank[0].sum()
        seen |= set(np.unique(states).tolist())
        if env.unwrapped.batch.done[0]:
            break
    assert seen == set(range(len(LABELS)))


def test_the_image_shows_states_and_memory_in_the_colours_of_the_legend() -> None:
    env = played("rgb_array")
    image = env.render()
    assert image.shape == (720, 1280, 3) and image.dtype == np.uint8
    shot = env.unwrapped.screen.film.shots[-1]
    end = LEFT + round((RIGHT - LEFT) * shot.time_s / SMALL["horizon_s"])
    panel = image[PAGES[0] : PAGES[1], LEFT:end].reshape(-1, 3)
    drawn = {state for state in range(len(PALETTE)) if (panel == PALETTE[state]).all(axis=1).any()}
    kept = {int(v) for s in env.unwrapped.screen.film.shots for v in np.unique(s.pages)}
    assert drawn - {FREE} <= kept and {NATIVE, TOP, CACHED} <= drawn
    column = image[MEMORY[0] : MEMORY[1], end - 2]
    filled = np.count_nonzero((column != 255).any(axis=1)) / (MEMORY[1] - MEMORY[0])
    assert filled == pytest.approx(sum(shot.shares.values()), abs=0.03)
    assert (image[PAGES[0] : PAGES[1], end + 2 : RIGHT - 2] == 255).all()  # the future is blank


def test_the_film_costs_nothing_without_a_render_mode_and_changes_nothing_with_one() -> None:
    plain, filmed = make(), make(render_mode="rgb_array")
    rows = []
    for env in (plain, filmed):
        env.action_space.seed(0)
        env.reset(seed=1)
        rows.append(np.array([env.step(env.action_space.sample())[1] for _ in range(8)]))
        assert len(env.unwrapped.screen.film.shots) == (0 if env is plain else 9)
    np.testing.assert_array_equal(*rows)
    assert plain.unwrapped.render() is None
    filmed.reset()
    assert len(filmed.unwrapped.screen.film.shots) == 1


def test_text_is_one_screen() -> None:
    text = played("ansi").render()
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert "of the cap" in text and "waiting" in text and "cached" in text


def test_gymnasium_wrappers_and_checkers_take_it() -> None:
    from gymnasium.utils.env_checker import check_env

    env = RenderCollection(make(render_mode="rgb_array"))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert [frame.shape for frame in env.render()] == [(720, 1280, 3)] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*already unwrapped.*|.*alternatively make the environment.*")
        check_env(make(render_mode="ansi").unwrapped)
        check_env(make(render_mode="rgb_array").unwrapped)
    assert gym.make(ID, library=library(), render_mode="rgb_array_list", **SMALL).render_mode == "rgb_array_list"


def test_a_video_can_be_recorded_where_moviepy_is_installed(tmp_path) -> None:
    pytest.importorskip("moviepy")
    from gymnasium.wrappers import RecordVideo

    env = RecordVideo(make(render_mode="rgb_array"), str(tmp_path), episode_trigger=lambda _: True, video_length=4)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    env.close()
    assert list(tmp_path.glob("*.mp4"))


def test_each_lane_of_a_vector_has_its_picture() -> None:
    vector = gym.make_vec(ID, num_envs=2, library=library(), render_mode="rgb_array", **SMALL)
    single = make(render_mode="rgb_array", pressure=SMALL["pressure"])
    vector.reset(seed=[3, 4])
    single.reset(seed=3)
    vector.action_space.seed(0)
    for _ in range(3):
        actions = vector.action_space.sample()
        vector.step(actions)
        single.step(actions[0])
    view = pikv_env.make_sb3(num_envs=2, library=library(), render_mode="rgb_array", **SMALL)
    view.seed(3)
    view.reset()
    for _ in range(3):
        view.step(np.zeros((2, 30), np.float32))
    assert view.render().shape == (2 * 720, 1280, 3) and view.metadata["render_fps"] == 10
    frames = vector.render()
    np.testing.assert_array_equal(frames[0], single.render())
    assert not np.array_equal(*frames)


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown render mode 'rgb'.*'rgb_array'"):
        gym.make(ID, library=library(), **SMALL).unwrapped.__class__(library(), render_mode="rgb", **SMALL)


def test_text_in_images_is_placed_and_cut() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    ink = np.array([9, 9, 9], np.uint8)
    write(image, 0, 0, "I", ink, 2)
    assert image[0:14, 4:6].all() and not image[:, 12:].any()  # the stem of an I, doubled
    for x, y, align in ((38, 15, "left"), (-5, -3, "left"), (39, 0, "right"), (20, 5, "centre")):
        write(image, x, y, "Wg~", ink, 2, align)
    assert image.max() == 9
