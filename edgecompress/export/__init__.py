"""From a torch model to the file that ships: ONNX, its quantized forms, and the proof that they
agree.
"""
