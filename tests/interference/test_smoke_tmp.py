def test_a(tiny, run, tiny_llava, interference, tmp_path):
    print(run, run.blocks, run.probes)
    from transformers import AutoProcessor
    from mixlora.data.collation import Collator
    from mixlora.data.examples import Example, Turn
    from PIL import Image
    p = AutoProcessor.from_pretrained(tiny_llava/"base")
    c = Collator(p)
    e = c.encode(Example("7","t",(Turn("user","w1 w2"),Turn("assistant","w3")),Image.new("RGB",(20,20)),"x"))
    print(c.tokenizer.convert_ids_to_tokens(e.input_ids), e.labels)
    print(interference("--version"))
    print(interference("compute", *tiny.arguments(tmp_path/"o"), "--samples", "6"))
    assert 0
