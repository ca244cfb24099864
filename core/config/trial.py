"""Configuration of one trial: frozen, strict, and documented field by field.

A `TrialConfig` is always valid; core/config/base.py refuses what is not. The section `pruning` is
in core/config/pruning.py.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.config.augmentation import AugmentConfig
from core.config.base import Config, ConfigError
from core.config.pruning import PruningConfig

NO_SPEECH = "none"
"""Name of the corpus where there is no speech."""

DemoCommand = Literal["turn", "open", "close", "set", "play", "make", "call", "stop", "what"]


class DemoConfig(Config):
    """The corpus that eSpeak NG speaks from a small command grammar."""

    train_utterances: int = Field(1500, ge=2, le=1_000_000)
    """Utterances in the training voices."""
    dev_utterances: int = Field(150, ge=1, le=100_000)
    """Utterances in the dev voices, which no other split hears."""
    test_utterances: int = Field(200, ge=1, le=100_000)
    """Utterances in the test voices, which no other split hears."""
    snr_low_db: float = Field(15.0, ge=-10, le=60)
    """Lowest signal-to-noise ratio of the added noise, in dB."""
    snr_high_db: float = Field(30.0, ge=-10, le=60)
    """Highest signal-to-noise ratio of the added noise, in dB."""
    seed: int = Field(0, ge=0)
    """Draws sentences, voices, speeds and noise; the same seed speaks the same corpus."""
    commands: list[DemoCommand] = Field([], max_length=9)
    """Only sentences that begin with one of these words are spoken; empty for all sentences."""

    @model_validator(mode="after")
    def _noise_has_a_range(self) -> "DemoConfig":
        if self.snr_low_db > self.snr_high_db:
            raise ValueError(
                f"`snr_low_db` must be at most `snr_high_db`, but is {self.snr_low_db} above"
                f" {self.snr_high_db} instead"
            )
        return self


DecoderName = Literal["auto", "ctc", "transducer"]
Case = Literal["as_written", "lower", "upper"]


class CorpusConfig(Config):
    """Where speech and its transcripts come from, and what the tokens are."""

    name: str = Field("demo", min_length=1)
    """`demo`, `librispeech`, or a folder in the LibriSpeech layout, of lhotse manifests or Shar or
    of NeMo's manifests; `none` where there is no speech at all, which is for `conformer-sweep
    prune` alone."""
    labels: Literal["transcripts", "teacher"] = "transcripts"
    """What the training speech is taken to say: its transcripts, or what the teacher of
    `teacher.bundle` hears in it. Then no transcript of it is read, its splits may be plain folders
    of audio, and a dev or test split without transcripts is judged against the teacher's text."""
    root: str = ""
    """Folder of LibriSpeech, downloaded there if absent; only for `name = "librispeech"`."""
    train: str = Field("train*", min_length=1)
    """Glob of the splits to train on."""
    dev: str = Field("dev*", min_length=1)
    """Glob of the splits that the search is judged on."""
    test: str = Field("test*", min_length=1)
    """Glob of the splits that final points are judged on."""
    max_seconds: float = Field(30.0, gt=0.2, le=120)
    """Longer training utterances are left out, in seconds; dev and test are never cut."""
    resample: bool = True
    """Bring other sample rates to 16 kHz; if false, such a file is refused by name."""
    tokens: Literal["word", "unigram", "bpe", "char"] = "unigram"
    """What SentencePiece's pieces are. Whole words learn much faster on small vocabularies."""
    vocabulary: int = Field(128, ge=3, le=65_536)
    """Number of pieces, at most: blank and unknown included."""
    case: Case = "as_written"
    """How transcripts are read: as they are, or in the case in which a teacher from elsewhere has
    its tokens."""
    speeds: list[float] = Field([1.0], min_length=1, max_length=8)
    """Speeds at which the training speech is heard: 0.9 is slower and lower."""
    allow: list[Literal["commands", "urls"]] = Field([], max_length=2)
    """Sources of audio beside files that manifests may name: programs, which are then run, and
    addresses (http, https), which are then opened. Only in a file that you wrote yourself."""
    demo: DemoConfig = DemoConfig()

    @model_validator(mode="after")
    def _speeds_are_speeds(self) -> "CorpusConfig":
        for speed in self.speeds:
            if not 0.5 <= speed <= 2.0:
                raise ValueError(f"`speeds` must lie in [0.5, 2], but one is {speed} instead")
        return self


Decoder = Literal["ctc", "rnnt", "tdt"]


class ModelConfig(Config):
    """The teacher's shape: a named size, any number of which may be overruled."""

    size: Literal["tiny", "small", "medium", "large"] = "tiny"
    """About 1.5, 11, 27 or 115 million parameters."""
    blocks: int | None = Field(None, ge=1, le=64)
    """Conformer blocks."""
    width: int | None = Field(None, ge=4, le=4096)
    """Residual width."""
    inner: int | None = Field(None, ge=1, le=16_384)
    """Inner units of each feed-forward module."""
    heads: int | None = Field(None, ge=1, le=64)
    """Attention heads; the width must be divisible by them."""
    channels: int | None = Field(None, ge=1, le=8192)
    """Channels of each convolution module."""
    # 15 frames span 0.6 s, 31 span 1.24 s.
    kernel: int | None = Field(None, ge=1, le=255)
    """Kernel of the depthwise convolutions, odd, in frames of 40 ms."""
    frontend_channels: int | None = Field(None, ge=1, le=4096)
    """Channels of both convolutions of the front end."""
    decoder: Decoder = "ctc"
    """From frames to tokens: CTC, or a transducer that advances by one frame at a blank (RNN-T) or
    by a predicted duration (TDT)."""
    predictor: Literal["stateless", "lstm"] = "stateless"
    """Predictor of a transducer: over the last two tokens, or an LSTM layer over all of them."""
    predictor_width: int | None = Field(None, ge=1, le=8192)
    """Width of the predictor's embedding and LSTM, and of the joint; by default the residual width.
    """
    auxiliary_ctc: bool = False
    """Whether a transducer has a CTC head beside it."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout while the teacher is trained."""


class TeacherConfig(Config):
    """The unpruned model: trained here, or a bundle from before."""

    bundle: str = ""
    """Folder of a finished bundle; if given, nothing is trained."""
    steps: int = Field(1000, ge=1, le=10_000_000)
    """Optimizer steps of its training."""
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Peak rate of AdamW, reached after the warm-up, then falling as a cosine."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly."""
    weight_decay: float = Field(1e-2, ge=0, le=1)
    """AdamW's decay."""
    interctc_weight: float = Field(0.0, ge=0, lt=1)
    """Share of the loss that CTC after middle blocks has, so that the model may be cut there."""
    interctc_layers: list[int] = Field([], max_length=63)
    """Those blocks, counted from 1, before the last; without any, the middle one."""
    # 0.4 and 4 blocks: they are skipped with probability 0.1, 0.2, 0.3 and 0.4.
    stochastic_depth: float = Field(0.0, ge=0, lt=1)
    """Probability p with which a step passes by the last block of L; block l goes with p l / L.
    Such training is never compiled, as each draw is another graph."""


class DistillationConfig(Config):
    """Losses by which the pruned model learns, in the search and in tuning."""

    task_weight: float = Field(1.0, ge=0, le=1e4)
    """Weight of CTC on the transcripts."""
    logit_weight: float = Field(1.0, ge=0, le=1e4)
    """Weight of the divergence from the teacher's output distribution."""
    layer_weight: float = Field(0.3, ge=0, le=1e4)
    """Weight of the distance from the teacher's hidden states."""
    temperature: float = Field(2.0, gt=0, le=100)
    """Softens both distributions."""
    # 4 of a teacher's 6 blocks: 1, 2, 4 and 5, counted from 0.
    layers: int = Field(4, ge=1, le=64)
    """How many of the teacher's blocks are matched, equally spaced and ending with the last."""
    matching: Literal["ordered", "fixed"] = "ordered"
    """Nearest student block with the order kept, or block i to block i."""
    teacher_precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the teacher's weights while it teaches. bf16 takes half of their memory; it is meant
    for GPUs, as few processors are fast with it."""


class TuningConfig(Config):
    """The extracted model's training."""

    steps: int = Field(300, ge=0, le=10_000_000)
    """Optimizer steps."""
    learning_rate: float = Field(6e-4, gt=0, le=1)
    """Peak rate of AdamW."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; it then falls as a cosine."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout while the small model is tuned; gate noise takes its place in the search."""
    more_steps: int = Field(0, ge=0, le=10_000_000)
    """Optimizer steps by which a finished model is tuned on, at rates that rise and fall anew."""


class BoostingConfig(Config):
    """Training by a second encoder that is compressed away again (FOSTER, Wang et al., 2022)."""

    share: float = Field(0.5, ge=0, le=1)
    """Share of the steps in which the second encoder learns; in the others both become one."""
    old_weight: float = Field(1.0, ge=0, le=1e4)
    """Weight of the divergence from what the old model, or a trial's teacher, says of its tokens
    while the second encoder learns."""
    temperature: float = Field(2.0, gt=0, le=100)
    """Softens what is distilled, in both stages."""
    # 0.97: a token seen once weighs 1, one seen 10 times 0.114, one seen 100 times 0.031.
    boost_beta: float = Field(0.97, ge=0, lt=1)
    """How much rarer tokens weigh more while the second encoder learns: a token seen n times weighs
    (1 - beta) / (1 - beta**n); at 0 all weigh the same."""
    compress_beta: float = Field(0.97, ge=0, lt=1)
    """The same while both become one: higher keeps more of what is old, lower learns more that is
    new."""
    task_weight: float = Field(0.0, ge=0, le=1e4)
    """Weight of CTC on the transcripts while both become one; FOSTER has none, and a trial takes
    that of `distillation`."""


class TrainingConfig(Config):
    """Settings that all training of a trial shares."""

    # 60 s: 15 utterances of 4 s, or 4 of which the longest has 15 s.
    batch_seconds: float = Field(60.0, gt=0, le=100_000)
    """Speech in a batch, padding included, in seconds."""
    micro_batches: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = 1
    """Parts in which a batch passes, for less memory; batch-norm sees one part at a time. `auto`
    takes the fewest with which a step fits into `runtime.memory_gigabytes`."""
    clip: float = Field(5.0, gt=0, le=1e6)
    """Largest norm of the weights' gradient; gates and multipliers are never clipped."""
    augment: AugmentConfig = AugmentConfig()

    @property
    def parts(self) -> int:
        """Number of micro-batches, once `auto` has been counted."""
        assert self.micro_batches != "auto", "counted as a trial begins"
        return self.micro_batches


class LossConfig(Config):
    """The loss of a transducer, in all training; that of CTC alone has no settings."""

    ctc_weight: float = Field(0.3, ge=0, lt=1)
    """Share of a CTC head beside the transducer."""
    fastemit: float = Field(0.0, ge=0, le=1)
    """By how much gradients of tokens grow beside those of blanks, so that tokens come earlier
    (FastEmit; Yu et al., 2021). 0.005 is a usual value."""
    sigma: float = Field(0.0, ge=0, le=1)
    """By how much the logarithms of TDT's probabilities are lowered: a path of fewer steps loses
    less, so long durations are preferred. NeMo's recipe has 0.02."""
    omega: float = Field(0.0, ge=0, lt=1)
    """Share of RNN-T's loss on the same tokens and blanks in that of TDT. NeMo's recipe takes that
    loss for 0.1 of the batches."""


class EvaluationConfig(Config):
    """Measurement of an outcome."""

    decoder: DecoderName = "auto"
    """The decoder that is judged, of a model with two; `auto` takes a transducer if there is one.
    Parameters and FLOPs count both."""
    bootstrap_samples: int = Field(1000, ge=100, le=1_000_000)
    """Resamples of the utterances behind an interval of the WER."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the interval."""
    latency_repeats: int = Field(7, ge=1, le=1000)
    """Timed passes of one utterance at batch 1; their median is the latency."""


class RuntimeConfig(Config):
    """Where and how a trial computes; none of it changes what is computed, but for rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16 is autocast of matrix products while training; gates, losses and multipliers stay in
    fp32. `auto` takes it where the processor has instructions for it: elsewhere it is slower."""
    compile: bool = False
    """`torch.compile` the stages whose shapes are fixed: teacher and tuning."""
    checkpointing: bool = False
    """Keep only what enters each block while training, and compute the rest again for its
    gradients: activations take less memory, and a step a third more time."""
    memory_gigabytes: float = Field(0.0, ge=0, le=10_000)
    """Memory that a trial may take, in 10^9 bytes, for `training.micro_batches = "auto"`; 0 where
    it is not known."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads of a trial."""
    report_steps: int = Field(100, ge=1, le=10_000_000)
    """Steps between evaluations on dev."""
    checkpoint_steps: int = Field(100, ge=1, le=10_000_000)
    """Steps between checkpoints; at most so many are lost to a kill."""


class TrialConfig(Config):
    """One trial, whole."""

    # Below 2^31: further ranks of a trial add multiples of it.
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Sets weights, order of the data, dropout and gate noise."""
    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    pruning: PruningConfig = PruningConfig()
    distillation: DistillationConfig = DistillationConfig()
    tuning: TuningConfig = TuningConfig()
    boosting: BoostingConfig = BoostingConfig()
    training: TrainingConfig = TrainingConfig()
    loss: LossConfig = LossConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _memory_is_known(self) -> "TrialConfig":
        if self.training.micro_batches == "auto" and self.runtime.memory_gigabytes == 0:
            raise ConfigError(
                '`runtime.memory_gigabytes` must be above 0 for `training.micro_batches = "auto"`,'
                " but is 0 instead"
            )
        return self

    @model_validator(mode="after")
    def _transducer_is_supported(self) -> "TrialConfig":
        if not self.teacher.bundle:
            is_ctc = self.model.decoder == "ctc"
            has_ctc = is_ctc or self.model.auxiliary_ctc
            self.check_decoders(has_ctc=has_ctc, has_transducer=not is_ctc)
        return self

    def check_decoders(self, *, has_ctc: bool, has_transducer: bool) -> None:
        """Check that all that is asked for works with the decoders of a model.

        Args:
            has_ctc: whether the model has a CTC head.
            has_transducer: whether it has a transducer.

        Raises:
            ConfigError: naming the first setting that does not.
        """
        judged = self.evaluation.decoder
        if (judged == "ctc" and not has_ctc) or (judged == "transducer" and not has_transducer):
            raise ConfigError(
                f"`evaluation.decoder` must be a decoder of the model, but is `{judged}` instead"
            )
        if has_transducer:
            self._check_transducer(has_ctc=has_ctc)

    def _check_transducer(self, *, has_ctc: bool) -> None:
        """Check that all that is asked for works on a model with a transducer.

        Args:
            has_ctc: whether the model has a CTC head beside it.

        Raises:
            ConfigError: naming the first setting that does not.
        """
        pruning = self.pruning
        needs_ctc = {
            'pruning.method = "interctc"': pruning.method == "interctc" and not has_ctc,
            "teacher.interctc_weight": self.teacher.interctc_weight > 0 and not has_ctc,
            'pruning.method = "foster"': pruning.method == "foster",
            "latency as a resource": "latency" in pruning.targets,
        }
        for setting, is_asked in needs_ctc.items():
            if is_asked:
                raise ConfigError(
                    f"`{setting}` must go with a CTC model, but the model has a transducer instead"
                    '; take another method or resource, or `model.decoder = "ctc"`'
                )

    @model_validator(mode="after")
    def _pseudo_labels_have_a_teacher(self) -> "TrialConfig":
        without = {
            'corpus.labels = "teacher"': self.corpus.labels == "teacher",
            'corpus.name = "none"': self.corpus.name == NO_SPEECH,
        }
        for setting, is_so in without.items():
            if is_so and not self.teacher.bundle:
                raise ValueError(
                    "`teacher.bundle` must be the folder of a trained recognizer where"
                    f" `{setting}`, but is empty instead"
                )
        return self
