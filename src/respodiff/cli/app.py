"""``respodiff app``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

from typer import Option

from respodiff._device import chosen_device
from respodiff.cli.console import app, check_device, open_model
from respodiff.cli.console import words as console
from respodiff.cli.options import DRAWING, Batch, number, takes_model, to_path
from respodiff.pipelines.source import ModelSource
from respodiff.steering.shipped import check_model

HOST_HELP = "Address to listen on. Another one than 127.0.0.1 lets other machines in: whoever reaches the page can use it."
MODULE_HELP = "Module file to offer, beside those that are trained in the page; repeat."
JUDGE_HELP = "clip:DIR-OR-ID, siglip:, hf:, vlm: or table:FILE<judges>. (default embedded, for the embedded model alone; else none)"


@app.command(name="app", epilog="Example: respodiff app --port 7860")
@takes_model(DRAWING, trains=True)
def page(
    model: ModelSource,
    out: Annotated[Path, Option(help="Folder for runs, modules, reports and labels.", metavar="DIR", parser=to_path)] = Path(
        "respodiff-app"
    ),
    module: Annotated[list[Path] | None, Option(help=MODULE_HELP, metavar="FILE")] = None,
    judge: Annotated[str, Option(help=JUDGE_HELP, metavar="NAME")] = "",
    port: Annotated[int, number(1, 65535, help="Port to listen on.")] = 7860,
    host: Annotated[str, Option(help=HOST_HELP, metavar="ADDRESS")] = "127.0.0.1",
    batch: Batch = 4,
) -> None:
    """A page in the browser: try, train, audit, label, and read runs. Listens on this machine alone. Needs the extra app."""
    try:
        from respodiff.app.server import check_port, serve
    except ImportError as error:
        raise RuntimeError("respodiff app needs the package gradio; run: pip install 'respodiff[app]'") from error
    from respodiff.app.service import Service
    from respodiff.evaluation import judges
    from respodiff.experiments.audit import labels_from_texts

    check_port(host, port)
    check_model(module or [], model.source)
    judge = judge or ("embedded" if model.source == "embedded" else "")
    check_device(model.device)
    labeller = judges.load_judge(judge, chosen_device(model.device)) if judge else None  # a wrong one is noticed before the model is loaded
    if labeller:
        labels_from_texts([labeller])
    service = Service(open_model(model), model, judge, out, tuple(module or ()), batch, _is_local(host), labeller)
    service.choices()  # reads the modules
    if not service.local:
        console.print(f"open to other machines: whoever reaches {host}:{port} can use it", soft_wrap=True)
    serve(service, host, port, lambda address: print(f"Running on {address}", flush=True)).block_thread()


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
