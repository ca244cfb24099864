"""Search spaces of a few tiny trials, for benchmarks that need a sweep and not its numbers."""

REAL_TRIALS = 4
"""Trials of `RECORDED` that are run; the others are made up."""
EARLY_KILLS = """
[sweep]
name = "early"
trials = 1
seed = 1
{ledger}
[search]
sampler = "qmc"
{tracking}
[trial.corpus]
tokens = "word"
vocabulary = 64
[trial.corpus.demo]
train_utterances = 40
dev_utterances = 8
test_utterances = 8
[trial.model]
blocks = 1
width = 16
inner = 32
heads = 2
channels = 16
kernel = 7
[trial.teacher]
steps = 2
[trial.pruning]
target_sparsity = {{ uniform = [0.2, 0.8] }}
steps = 2
calibration_batches = 2
[trial.tuning]
steps = 2
[trial.evaluation]
bootstrap_samples = 100
latency_repeats = 1
[trial.runtime]
report_steps = 2
checkpoint_steps = 2
"""
"""With places for `ledger` and `tracking`."""
EQUAL_RESULTS = """
[sweep]
trials = 5
seed = 1

[resources]
concurrent = 1

[trial]
seed = 3

[trial.corpus]
tokens = "word"

[trial.corpus.demo]
train_utterances = 30
dev_utterances = 6
test_utterances = 6

[trial.model]
blocks = 1
width = 16
inner = 32
heads = 2
channels = 16
kernel = 7
frontend_channels = 4

[trial.teacher]
steps = 2

[trial.pruning]
method = { choice = ["l0", "magnitude", "uniform"] }
target_sparsity = { uniform = [0.2, 0.8] }
steps = 2
calibration_batches = 2

[trial.distillation]
logit_weight = { uniform = [0.0, 1.0] }

[trial.tuning]
steps = 2

[trial.evaluation]
bootstrap_samples = 100
latency_repeats = 1

[trial.runtime]
device = "cpu"
report_steps = 2
checkpoint_steps = 2
"""
RECORDED = f"""
[sweep]
name = "many"
trials = {REAL_TRIALS}
seed = 1

[resources]
concurrent = 1

[trial.corpus]
tokens = "word"
vocabulary = 64

[trial.corpus.demo]
train_utterances = 40
dev_utterances = 8
test_utterances = 8

[trial.model]
blocks = 1
width = 16
inner = 32
heads = 2
channels = 16
kernel = 7
frontend_channels = 4

[trial.teacher]
steps = 2

[trial.pruning]
target_sparsity = {{ uniform = [0.1, 0.92] }}
steps = 2
calibration_batches = 2

[trial.pruning.l0]
lambda_lr = {{ log_uniform = [0.01, 1.0] }}

[trial.distillation]
logit_weight = {{ uniform = [0.0, 1.0] }}
layer_weight = {{ log_uniform = [0.01, 1.0] }}

[trial.tuning]
steps = 2

[trial.evaluation]
bootstrap_samples = 100
latency_repeats = 1

[trial.runtime]
report_steps = 2
checkpoint_steps = 2
"""
