"""Inference: recognizers that transcribe audio, in torch and in ONNX Runtime."""
