"""An adapter taken away from Python: to llama.cpp and what is built on it, to Ollama, to the Hugging Face hub.

`gguf.py` an adapter or a merged model as a file of llama.cpp's; `llama_cpp.py` its own server, to ask what it makes of one;
`modelfile.py` what Ollama needs beside it; `model_card.py` a folder for the hub.
"""
