"""Greedy answers of an exported Llama-family generator, by transformers and by llama.cpp: they must be the same words.

    pip install llama-cpp-python gguf torch
    radit export runs/quickstart --out exported
    python scripts/check_llama_cpp.py exported/generator --questions questions.jsonl

Each line of the questions is `{"question", "passage"?, "title"?}`; prompts are built by the directory's own prompt.py.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import safetensors.numpy
import torch
import transformers

NAMES = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
  "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}


def write_gguf(directory: pathlib.Path, path: pathlib.Path) -> None:
  """The weights and the vocabulary, float32, as llama.cpp's own converter lays them out."""
  config = json.loads((directory / "config.json").read_text())
  if config["model_type"] != "llama":
    raise SystemExit(f"{directory}: {config['model_type']}; this check knows Llama's layout")
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
  head_dim = config.get("head_dim") or config["hidden_size"] // heads
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_key_length(head_dim)
  writer.add_value_length(head_dim)
  writer.add_rope_dimension_count(head_dim)
  writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_vocab_size(config["vocab_size"])
  vocabulary = {i: token for token, i in tokenizer.get_vocab().items()}
  tokens = [vocabulary.get(i, f"[unused{i}]") for i in range(config["vocab_size"])]
  control = set(tokenizer.all_special_ids)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("default")
  writer.add_token_list(tokens)
  writer.add_token_types(
    [gguf.TokenType.CONTROL if i in control else gguf.TokenType.NORMAL for i in range(len(tokens))]
  )
  merges = json.loads((directory / "tokenizer.json").read_text())["model"].get("merges", [])
  writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
  writer.add_bos_token_id(tokenizer.bos_token_id)
  writer.add_eos_token_id(tokenizer.eos_token_id)
  for file in sorted(directory.glob("*.safetensors")):
    for name, value in safetensors.numpy.load_file(file).items():
      value = np.ascontiguousarray(value, np.float32)
      if name in NAMES:
        target = NAMES[name]
      else:
        _, _, layer, rest = name.split(".", 3)
        module, kind = rest.rsplit(".", 1)
        target = f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"
        if module in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp turns neighbours, Hugging Face halves
          count = heads if "q_proj" in module else kv_heads
          value = value.reshape(count, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
      writer.add_tensor(target, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("directory", type=pathlib.Path)
  parser.add_argument("--questions", type=pathlib.Path, required=True)
  args = parser.parse_args()
  from llama_cpp import Llama

  prompts = subprocess.run(
    [sys.executable, args.directory / "prompt.py"],
    stdin=args.questions.open(),
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  recipe = json.loads((args.directory / "radit.json").read_text())["prompt"]
  ends = {end["id"] for end in recipe["end"]}
  room = recipe["limits"]["max_answer_tokens"] + 1
  tokenizer = transformers.AutoTokenizer.from_pretrained(args.directory)
  model = transformers.AutoModelForCausalLM.from_pretrained(args.directory).eval()
  with tempfile.TemporaryDirectory() as d:
    write_gguf(args.directory, pathlib.Path(d) / "model.gguf")
    engine = Llama(str(pathlib.Path(d) / "model.gguf"), n_ctx=recipe["limits"]["max_tokens"], verbose=False)
    same = 0
    for line in prompts:
      ids = tokenizer(json.loads(line)["prompt"], add_special_tokens=False)["input_ids"]
      theirs: list[int] = []
      engine.reset()
      for token in engine.generate(ids, temp=0.0, top_k=1):
        if token in ends or len(theirs) == room:
          break
        theirs.append(token)
      row = torch.tensor([ids])
      with torch.no_grad():
        out = model.generate(
          row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=room, eos_token_id=list(ends)
        )
      ours = [i for i in out[0, len(ids) :].tolist() if i not in ends]
      same += ours == theirs
      print(json.dumps({"transformers": tokenizer.decode(ours), "llama.cpp": tokenizer.decode(theirs)}))
  print(f"the same words for {same} of {len(prompts)} questions")
  return int(same != len(prompts))


if __name__ == "__main__":
  sys.exit(main())
