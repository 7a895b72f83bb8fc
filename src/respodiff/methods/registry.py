"""RespoDiff and its peers behind one interface: train or build from a concept, save, load, apply to a pipeline, draw.

    from respodiff.methods import applied, load, method
    slider = method("slider").fit(pipe, concept("woman"))
    with applied(pipe, [slider, None]):
        images = pipe("a doctor", num_images_per_prompt=2).images

docs/methods.md says of each which equation it is, what it stores, what it costs and what it leaves out.
"""

from __future__ import annotations

NAMES: dict[str, str] = {
    "respodiff": "respodiff",
    "plain": "prompting",
    "prompt": "prompting",
    "prompt-switch": "prompting",
    "negative": "prompting",
    "sdisc": "sdisc",
    "sld-weak": "sld",
    "sld-medium": "sld",
    "sld-strong": "sld",
    "sld-max": "sld",
    "esd-x": "esd",
    "esd-u": "esd",
    "fdf": "fdf",
    "bact": "bact",
    "uce": "uce",
    "slider": "concept_slider",
    "respodiff-paper": "respodiff",
}
"""Name of every method -> the module of this package that holds it (imported when first asked for)."""

NOT_TRAINED = ("plain", "prompt", "prompt-switch", "negative", "sld-weak", "sld-medium", "sld-strong", "sld-max")
"""Methods whose adapter is made at once, without the model being called."""
