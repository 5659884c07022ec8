"""The model card: what the artifact is, what metric it reached, and how it was made."""

from __future__ import annotations

import json

import yaml

from mergenet_core.records.job import Trial
from mergenet_core.records.provenance import Provenance
from mergenet_core.results.report import Report, markdown
from mergenet_core.spec.job import JobSpec, ModelSpec
from mergenet_core.spec.task_info import TASKS

_PROCESSORS = {"text": "AutoTokenizer", "images": "AutoImageProcessor"}
"""The class of transformers that loads the processor of a kind of input."""
ADAPTER = """\
`adapter.safetensors` and `adapter.json` hold the adapter, `pairing.json` which weights were paired,
"""


def model_card(job: JobSpec, report: Report, trial: Trial, about: Provenance) -> str:
    """README.md of the artifact, with the front matter that the hub reads."""
    assert trial.result is not None
    result, task = trial.result, TASKS[job.target.task]
    front = yaml.safe_dump(
        {"library_name": "transformers", "pipeline_tag": task.pipeline_tag, "tags": ["mergenet"]}
    ).strip()
    processors = [_PROCESSORS[kind] for kind in task.inputs]
    names = ("processor",) if len(processors) == 1 else ("tokenizer", "image_processor")
    built_in = str((job.target.model.config or {}).get("model_type", "")).startswith("mergenet-")
    loading = [
        *(["import mergenet_core.models  # registers the built-in architectures"] if built_in else []),
        f"from transformers import {', '.join((task.auto_class, *processors))}",
        "",
        f'model = {task.auto_class}.from_pretrained("model")',
        *(f'{name} = {auto}.from_pretrained("model")' for auto, name in zip(processors, names, strict=True)),
    ]
    data = result.data.get("train", {})
    test = result.last["test"]
    return f"""---
{front}
---
# {job.name}

A model for {task.name.replace("-", " ")} with {result.parameters:,} parameters: {_model_name(job.target.model)},
trained {result.steps} steps on {data.get("examples", "?")} examples, {_transfer_sentence(job, report)}

These are the weights of trial `{trial.id}` after its last step; of its arm's seeds it was best on validation. On the
test split its {result.metric} is **{100 * test:.2f} %**.

## The same training with and without the transfer

{markdown(report)}

A seed fixes the examples, their order, the initial weights and the dropout, the same in all arms. The first column is
the mean over the seeds after the last step; seeds were selected on validation.

## Use

```python
{chr(10).join(loading)}
```

{ADAPTER if report.transferred else ""}`job.json` repeats the job, `manifest.json` lists every file with its SHA-256.

## Made from

```json
{json.dumps(about, indent=1, ensure_ascii=False)}
```
"""


def _transfer_sentence(job: JobSpec, report: Report) -> str:
    source = _model_name(job.source.model)
    if not report.transferred:
        return f"without a transfer from\n{source}. It is the control's model: {report.reason}."
    return (
        f"with knowledge transferred into its weights from\n{source}. Its architecture and speed are the target's; the "
        "adapter is not part of it."
    )


def _model_name(model: ModelSpec) -> str:
    if model.config is not None:
        return f"a {model.config['model_type']} from scratch"
    return f"`{model.path or model.hub or model.pack}`"
