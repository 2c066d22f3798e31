"""From a torch model to the file that ships: ONNX, its quantized formats, and the check that they
agree.
"""
