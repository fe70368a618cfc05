"""The part that recipes for tests of commands have in common: a SegFormer of 8 and 16 channels."""

HEIGHT, WIDTH, CLASSES = 32, 48, 3

MODEL = f"""
schema: dynprune/1
name: tiny
model:
  architecture: SegformerForSemanticSegmentation
  config:
    model_type: segformer
    num_labels: {CLASSES}
    num_encoder_blocks: 2
    depths: [1, 1]
    hidden_sizes: [8, 16]
    decoder_hidden_size: 16
    num_attention_heads: [1, 2]
    sr_ratios: [2, 1]
    mlp_ratios: [2, 2]
    patch_sizes: [7, 3]
    strides: [4, 2]
  input: [1, 3, {HEIGHT}, {WIDTH}]
rewrite: [fold-decoder]
apply:
  targets: [{{kind: qk}}, {{kind: v}}, {{kind: ffn}}]
  gate: {{align: 2}}
  calibration: {{images: 2}}
"""
