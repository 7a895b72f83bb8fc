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
# # The paper in miniature
#
# Algorithm 1 of RespoDiff on the embedded model: RAM and SAM are trained, then images of both, of RAM alone, and of the unsteered model are
# measured. Updates are a hundredth of the paper's, and the model is another one. So this shows how a table is made, and none of its figures.

# %%
import torch

from respodiff import ConceptModule, GenerateConfig, TrainConfig, evaluate, generate, load_all, load_pipeline, train

pipe = load_pipeline("embedded")
PROMPTS = ["a doctor", "a nurse", "a carpenter", "a librarian"]

# %% [markdown]
# ## Training
#
# The preset `paper` has its two losses and two optimisers. A rollout of the steered model gives one latent for each update.
# Rates are larger than the paper's, as there are fewer updates.

# %%
modules = []
for name in ("woman", "man"):
    config = TrainConfig.preset("paper", name, iterations=40, steps=8, ram_lr=0.15, sam_lr=0.015)
    for step in train(pipe, name, config):
        if step.iteration % 10 == 0:
            print(f"{name} {step.iteration}: L_resp {step.loss:.4f}, lambda L_sem {step.loss_sam:.4f}, {step.unet_forwards} forwards")
    modules.append(step.module)

# %% [markdown]
# ## The ablation
#
# RAM alone is the same module with a SAM of zeros. The last row has modules of the preset `default`, which ship with the package: it takes the
# same steps on pools of rollouts, as so few updates of one latent each are mostly noise (docs/training.md).

# %%
ram_alone = [ConceptModule.of(m.ram, torch.zeros_like(m.sam), m.header) for m in modules]
rows = {"unsteered": [], "RAM alone": ram_alone, "RAM and SAM": modules, "default": load_all("gender")}
for name, adapters in rows.items():
    for _ in generate(pipe, PROMPTS, adapters, GenerateConfig(images=4), out=f"paper/{name}"):
        pass

# %% [markdown]
# ## The table
#
# Intervals of 16 images a row are wide: rows whose intervals overlap this much are not told apart.
# `respodiff reproduce ablation --model embedded --out runs/twin` runs the whole of it; on Stable Diffusion its published figures stand beside.

# %%
for name in rows:
    summary = evaluate(f"paper/{name}", attributes=["gender"])
    devrat, alignment = summary.devrat["gender"], summary.alignment
    print(f"{name:12} DevRat {devrat.mean:.2f} [{devrat.low:.2f}, {devrat.high:.2f}]  alignment {alignment.mean:.1f}")
