"""Plan: a device of the user's own, what is kept free on it, which layouts are shown, and what a training costs."""

from __future__ import annotations

from engine.devices import DEVICES
from pages.plan.request import OWN, Request, figures_of, of_link, to_link
from tests.pages.opened import text
from tests.pages.test_plan import SMALL, linked, page, same


def test_an_older_link_without_the_last_figures_still_opens() -> None:
    hardware = of_link({"device": "own", "own": "80_1_1_1_1_1_1_1_8_0.5"}).hardware
    assert (hardware.reachable, hardware.fp32_reachable, hardware.workspace_bytes) == (0.5, 0.8, 32 * 2**20)
    hardware = of_link({"device": "own", "own": "80_1_1_1_1_1_1_1_8_0.5_0.7"}).hardware
    assert (hardware.fp32_reachable, hardware.fragmentation, hardware.launch_us) == (0.7, 0.04, None)


def test_a_link_keeps_what_was_measured_on_a_device() -> None:
    """A calibrated processor, whose file was loaded: the form shows its figures, and keeps those that it does not show."""
    measured = {"launch_us": 21.5, "attention_efficiency": 0.4, "launches_ahead": False}
    mine = DEVICES["laptop-cpu"].model_copy(update=measured)
    assert same(of_link(to_link(Request(device=OWN, own=figures_of(mine)))).hardware, mine)


def test_reserve_filter_and_cost_are_fields_and_in_the_link() -> None:
    app = page()
    assert "are kept free" in text(app)
    assert "CUDA context: the driver, and the kernels that are loaded: 512 MiB" in text(app)
    assert "device-hours" not in text(app)
    app.number_input(key="plan/tokens").set_value(3e11).run()
    app.number_input(key="plan/price").set_value(2.5).run()
    app.number_input(key="plan/watts").set_value(1000.0).run()
    assert "tokens with this layout take" in text(app)
    assert "at 2.5 an hour" in text(app)
    assert "MWh at 1000 W a device" in text(app)
    app.number_input(key="plan/reserve").set_value(12.5).run()
    assert "12.5 GiB are kept free" in text(app)
    assert "NCCL: buffers" not in text(app)
    app.selectbox(key="plan/only").set_value("torchtitan").run()
    assert linked(app) == SMALL | {"tokens": "3e+11", "price": "2.5", "watts": "1000", "reserve": "12.5", "only": "torchtitan"}
    app.number_input(key="plan/reserve").set_value(None).run()
    assert not app.exception
    assert "reserve" not in linked(app)
