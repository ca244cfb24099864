"""Python code that loads each kind of export, for its model card."""

TEXTS = {
    "bundle": """
# pip install conformer-sweep
from pathlib import Path
from core import bundle
from core.inference.recognizer import transcribe

for file, text in transcribe(bundle.load(Path(".")), [Path("speech.wav")]):
    print(file, text)
""",
    "onnx": """
import numpy as np
import onnxruntime
import torchaudio

speech, rate_hz = torchaudio.load("speech.wav")  # 16 kHz, one channel
features = torchaudio.compliance.kaldi.fbank(
    speech, num_mel_bins=80, sample_frequency=16000, dither=0.0, snip_edges=False,
    low_freq=20, high_freq=-400,
)[None].numpy()
session = onnxruntime.InferenceSession("model.onnx")
num_frames = np.array([features.shape[1]])
log_probabilities, num_output_frames = session.run(
    None, {"features": features, "num_frames": num_frames}
)
best = log_probabilities[0, : num_output_frames[0]].argmax(-1)  # merge repeats, drop 0
""",
    "onnx transducer": """
# pip install "conformer-sweep[export]"
from pathlib import Path
from core.inference.exported_model import load_export
from core.inference.recognizer import transcribe

for file, text in transcribe(load_export(Path(".")), [Path("speech.wav")]):
    print(file, text)
""",
    "sherpa": """
import json
import sherpa_onnx
import soundfile

spec = json.load(open("sherpa.json"))  # in the export's folder
recognizer = getattr(sherpa_onnx.OfflineRecognizer, spec["loader"])(**spec["arguments"])
samples, rate_hz = soundfile.read("speech.wav", dtype="float32")
stream = recognizer.create_stream()
stream.accept_waveform(rate_hz, samples)
recognizer.decode_stream(stream)
print(stream.result.text)
""",
    "onnx-asr": """
import json
import onnx_asr

kind = json.load(open("config.json"))["model_type"]  # in the export's folder
model = onnx_asr.load_model(kind, ".")  # quantization="int8" takes the graphs in integers
print(model.recognize("speech.wav"))
""",
    "transformers": """
import soundfile
from transformers import AutoProcessor, ParakeetForCTC

processor = AutoProcessor.from_pretrained(".")  # the export's folder
model = ParakeetForCTC.from_pretrained(".")
samples, rate_hz = soundfile.read("speech.wav", dtype="float32")  # 16 kHz, one channel
inputs = processor(samples, sampling_rate=rate_hz)
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True))
""",
    "transformers transducer": """
import soundfile
from transformers import AutoProcessor, ParakeetForTDT

processor = AutoProcessor.from_pretrained(".")  # the export's folder
model = ParakeetForTDT.from_pretrained(".")
samples, rate_hz = soundfile.read("speech.wav", dtype="float32")  # 16 kHz, one channel
output = model.generate(**processor(samples, sampling_rate=rate_hz))
print(processor.batch_decode(output.sequences, skip_special_tokens=True))
""",
}
