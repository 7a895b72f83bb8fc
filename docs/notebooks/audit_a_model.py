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
# # Audit a model
#
# Which prompts are biased, how sure is that, and does the judge know what it talks about? This is `respodiff audit` step by step.

# %%
from collections import deque
from dataclasses import replace

from respodiff import GenerateConfig, load_judge, load_pipeline
from respodiff.concepts.concept import attribute
from respodiff.experiments.audit import audit_runs, judge_audit
from respodiff.experiments.work import draw
from respodiff.reports import audit_report

pipe = load_pipeline("embedded")
prompts, attributes = ["a doctor", "a nurse", "a carpenter"], [attribute("gender")]
config = GenerateConfig(images=10)

# %% [markdown]
# ## Draw
#
# Two run folders: unsteered images of the prompts, and images of explicit prompts ("a woman"), which show how valid the judge is.

# %%
for run in audit_runs(prompts, attributes, config, "audit", validation_images=8):
    deque(draw(pipe, run), maxlen=0)

# %% [markdown]
# ## Judge
#
# The ranking goes by the lower end of an interval that holds for all rows at once. "Biased" is an exact test, corrected for the number of rows.

# %%
found, scored = judge_audit("audit", [load_judge("embedded")], attributes, config, validation_images=8)
found = replace(found, suggest=("respodiff train --attribute gender --out modules",))  # `respodiff audit` finds out which to suggest
print("\n".join(audit_report.lines(found)))

# %% [markdown]
# ## A second judge
#
# It was trained apart from the first. Where both agree, the finding does not hang on one judge's habits. A judge that does not recognise what
# explicit prompts state is called not valid, and nothing is concluded from it.

# %%
second, _ = judge_audit("audit", [load_judge("embedded-b")], attributes, config, validation_images=8)
print("\n".join(audit_report.lines(second)))

# %% [markdown]
# ## The page

# %%
audit_report.write("audit/audit.html", found, scored)
