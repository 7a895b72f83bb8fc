# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fair generation in five minutes
#
# Who appears when a model draws "a doctor"? We look, steer, measure, and train a module of our own. The model `embedded` ships with the
# package, draws emoji-like people, and had its bias planted. No GPU, no network.

# %%
from diffusers.utils import make_image_grid

from respodiff import GenerateConfig, evaluate, fit_attribute, generate, load_all, load_pipeline, report, steer

pipe = load_pipeline("embedded")
PROMPTS = ["a doctor", "a nurse", "a carpenter", "a librarian"]
CALL = {"num_inference_steps": 8, "guidance_scale": 3.0}

# %% [markdown]
# ## One prompt
#
# `steer` takes one entry per image. The third image is not steered. After the block the pipeline is bit-identical to before.

# %%
with steer(pipe, ["woman", "man", None]):
    images = pipe("a doctor", num_images_per_prompt=3, **CALL).images
make_image_grid(images, 1, 3)

# %% [markdown]
# ## A run
#
# `generate` gives every prompt equal counts of all alternatives. Both runs start from the same noises.


# %%
def draw(name, modules):
    """A run folder of that name, and its images."""
    return [image for _, image in generate(pipe, PROMPTS, modules, GenerateConfig(images=4), out=f"fair/{name}")]


plain, even = draw("plain", []), draw("even", load_all("gender"))
make_image_grid(plain[:4] + even[:4], 2, 4)

# %% [markdown]
# ## Measured
#
# DevRat is 0 for equal proportions and 1 for one group only. The brackets are wide: these are few images.


# %%
def devrat(name):
    found = evaluate(f"fair/{name}", attributes=["gender"]).devrat["gender"]
    return f"{name}: DevRat {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


print(devrat("plain"), devrat("even"), sep="\n")

# %% [markdown]
# ## Modules of our own
#
# Training needs prompts alone. Woman and man are trained in one run.

# %%
modules = fit_attribute(pipe, "gender")
for name, module in modules.items():
    module.save(f"fair/{name}.safetensors")

trained = draw("trained", list(modules.values()))
print(devrat("trained"))
make_image_grid(trained[:4], 1, 4)

# %% [markdown]
# ## The page

# %%
print(report(["plain=fair/plain", "even=fair/even", "trained=fair/trained"], "fair/report.html")["page"])
