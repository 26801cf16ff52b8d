"""llama.cpp's own server, from the package xllamacpp: python llama_cpp_server.py PORT MODEL.gguf [LORA.gguf]."""

import sys
import threading

import xllamacpp  # type: ignore[import-not-found]


def main() -> None:
    port, model, *adapters = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.port, params.model.path = int(port), model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 512, 1, 1, False
    # its own number formats would hide the differences that are looked for
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
