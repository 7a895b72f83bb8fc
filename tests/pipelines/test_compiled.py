from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.contracts.pipeline_checks import Graphs, compiled
from tests.drawing import apart, draw, module, same
from tests.tiny_models import sd, sd3, small
from torch import Tensor

from respodiff.pipelines.bottleneck import is_compiled, open_compiled_hooks, site_module, site_shape
from respodiff.steering.module import ConceptModule
from respodiff.steering.steer import steer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make_pipe() -> Any:
    """A pipeline with the smallest UNet that there is: compiling takes long."""
    with small():
        return sd()


def quiet_steer(pipe: Any, modules: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with steer(pipe, modules):
            return draw(pipe)


def test_what_counts_as_compiled() -> None:
    unet = make_pipe().unet
    assert not is_compiled(unet)
    assert is_compiled(torch.compile(unet, backend="eager"))
    unet.compile(backend="eager")
    assert is_compiled(unet)


def test_the_second_compilation_is_said_once() -> None:
    pipe = make_pipe()
    m = module(pipe)
    pipe.unet.compile(backend="eager")
    with pytest.warns(UserWarning, match="compiled already: its next call compiles again"), steer(pipe, m):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(pipe, m):
            pass


def test_a_port_made_before_compiling_spares_the_second_compilation() -> None:
    pipe, graphs = make_pipe(), Graphs()
    m = module(pipe)
    open_compiled_hooks(pipe.unet)
    plain = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend=graphs, fullgraph=True)
    assert apart(draw(pipe), plain) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(pipe, m):
            steered = draw(pipe)
    assert graphs.n == 2, "plain and steered"
    assert apart(steered, plain) > 1e-3 and apart(draw(pipe), plain) < 1e-4 and graphs.n == 2


def test_an_exception_empties_the_port() -> None:
    pipe = make_pipe()
    plain, m = draw(pipe), module(pipe)
    pipe.unet.compile(backend="eager")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="given 3 entries"):
        warnings.simplefilter("ignore")
        with steer(pipe, [m, m, m]):
            draw(pipe)
    assert apart(draw(pipe), plain) < 1e-4


def test_a_copy_of_a_model_with_a_port_is_not_steered() -> None:
    pipe = make_pipe()
    open_compiled_hooks(pipe.unet)
    other = make_pipe()
    other.unet = copy.deepcopy(pipe.unet)
    assert pickle.loads(pickle.dumps(pipe.unet.mid_block))._forward_hooks
    plain = draw(other)
    with steer(pipe, module(pipe)):
        same(draw(other), plain, "the copy")


def test_threads_take_turns_on_one_compiled_model() -> None:
    pipe = make_pipe()
    own = {"scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config), "tokenizer": copy.deepcopy(pipe.tokenizer)}
    other = type(pipe)(**{**pipe.components, **own}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    a, b = module(pipe, 1), module(pipe, 2)
    pipe.unet.compile(backend="eager")
    serial = {"a": quiet_steer(pipe, a), "b": quiet_steer(other, b)}
    found: dict[str, Tensor] = {}
    work: Callable[..., None] = lambda key, p, m: found.update({key: quiet_steer(p, m)})  # noqa: E731
    threads = [threading.Thread(target=work, args=args) for args in (("a", pipe, a), ("b", other, b))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert apart(found["a"], serial["a"]) < 1e-6 and apart(found["b"], serial["b"]) < 1e-6


def test_compiled_before_in_place_and_inside_of_a_block() -> None:
    assert "one graph for all mixes" in compiled(make_pipe)


def test_compiled_again_inside_a_later_block() -> None:
    pipe = make_pipe()
    m = module(pipe)
    with steer(pipe, m):
        expected = draw(pipe)
    with steer(pipe, m):
        pipe.unet.compile(backend="eager")
        draw(pipe)
    assert apart(quiet_steer(pipe, m), expected) < 1e-4, "the hooks of the ended block are dead, the port is alive"


def test_a_site_that_is_compiled_on_its_own_is_refused() -> None:
    pipe = sd3()
    m: ConceptModule = module(pipe)
    site_module(pipe.transformer, m.header.site).compile(backend="eager")
    with (
        pytest.raises(ValueError, match=r"transformer_blocks\.1 is compiled on its own, and a hook on it would be ignored"),
        steer(pipe, m),
    ):
        pass


def test_other_backends_agree() -> None:
    pipe = make_pipe()
    m = module(pipe)
    with steer(pipe, m):
        expected = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
    assert apart(quiet_steer(pipe, m), expected) < 1e-4


def test_a_module_of_two_sites_is_steered_with_one_graph() -> None:
    pipe, graphs = make_pipe(), Graphs()
    r = {
        site: torch.randn(site_shape(pipe.unet, site=site), generator=torch.Generator().manual_seed(1))
        for site in ("mid_block", "up_blocks.0")
    }
    m = ConceptModule.of(r, {site: x / 4 for site, x in r.items()}, module(pipe).header)
    with steer(pipe, m):
        expected = draw(pipe)
    plain = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend=graphs, fullgraph=True)
    assert apart(quiet_steer(pipe, m), expected) < 1e-4 < apart(expected, plain)
    n = graphs.n
    assert apart(quiet_steer(pipe, m.scale(0.5)), expected) > 1e-4 and graphs.n == n
    assert apart(draw(pipe), plain) < 1e-4
