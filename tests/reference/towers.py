"""Feature towers in PyTorch: (features, tensors by the published names).

Each takes images [b h w 3] in [-1, 1] and a function that makes a tensor of a name and a shape.
"""

import numpy as np
import torch
from torch.nn import functional as F


def inception(variant, images, tensor, width=2, classes=10):
    """Features of Inception-v3 (arXiv 1512.00567, torchvision's names), and its tensors."""
    tensors = {}

    def take(name, *shape):
        tensors[name] = tensor(name, shape)
        return torch.from_numpy(tensors[name])

    def conv(x, name, channels, kernel=1, stride=1, pad=0):
        h, w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        c = channels * width // 32
        x = F.conv2d(x, take(name + ".conv.weight", c, x.shape[1], h, w), None, stride, pad)
        norm = [take(f"{name}.bn.{k}", c) for k in ("running_mean", "running_var")]
        norm += [take(f"{name}.bn.{k}", c) for k in ("weight", "bias")]
        return F.relu(F.batch_norm(x, *norm, eps=1e-3))

    def pool(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=variant == "torchvision")

    def a(x, m, features):
        m = f"Mixed_{m}.branch"
        five = conv(conv(x, m + "5x5_1", 48), m + "5x5_2", 64, 5, pad=2)
        three = conv(conv(x, m + "3x3dbl_1", 64), m + "3x3dbl_2", 96, 3, pad=1)
        three = conv(three, m + "3x3dbl_3", 96, 3, pad=1)
        return torch.cat(
            [conv(x, m + "1x1", 64), five, three, conv(pool(x), m + "_pool", features)], 1
        )

    def c(x, m, c7):
        m, row, column = f"Mixed_{m}.branch", {"pad": (0, 3)}, {"pad": (3, 0)}
        one = conv(conv(x, m + "7x7_1", c7), m + "7x7_2", c7, (1, 7), **row)
        one = conv(one, m + "7x7_3", 192, (7, 1), **column)
        two = conv(conv(x, m + "7x7dbl_1", c7), m + "7x7dbl_2", c7, (7, 1), **column)
        two = conv(two, m + "7x7dbl_3", c7, (1, 7), **row)
        two = conv(two, m + "7x7dbl_4", c7, (7, 1), **column)
        two = conv(two, m + "7x7dbl_5", 192, (1, 7), **row)
        return torch.cat([conv(x, m + "1x1", 192), one, two, conv(pool(x), m + "_pool", 192)], 1)

    def e(x, m, pooled):
        def fork(x, name):
            parts = (
                conv(x, name + "a", 384, (1, 3), pad=(0, 1)),
                conv(x, name + "b", 384, (3, 1), pad=(1, 0)),
            )
            return torch.cat(parts, 1)

        m = f"Mixed_{m}.branch"
        three = fork(conv(x, m + "3x3_1", 384), m + "3x3_2")
        double = conv(conv(x, m + "3x3dbl_1", 448), m + "3x3dbl_2", 384, 3, pad=1)
        double = fork(double, m + "3x3dbl_3")
        return torch.cat(
            [conv(x, m + "1x1", 320), three, double, conv(pooled(x), m + "_pool", 192)], 1
        )

    x = torch.tensor(images).movedim(-1, 1)
    if variant == "fid":  # pixels from 0 to 255 become (pixel - 128) / 128
        x = ((x + 1) * 127.5 - 128) / 128
    x = conv(x, "Conv2d_1a_3x3", 32, 3, 2)
    x = conv(x, "Conv2d_2a_3x3", 32, 3)
    x = F.max_pool2d(conv(x, "Conv2d_2b_3x3", 64, 3, pad=1), 3, 2)
    x = conv(x, "Conv2d_3b_1x1", 80)
    x = F.max_pool2d(conv(x, "Conv2d_4a_3x3", 192, 3), 3, 2)
    x = a(a(a(x, "5b", 32), "5c", 64), "5d", 64)
    m = "Mixed_6a.branch"
    y = conv(conv(x, m + "3x3dbl_1", 64), m + "3x3dbl_2", 96, 3, pad=1)
    y = conv(y, m + "3x3dbl_3", 96, 3, 2)
    x = torch.cat([conv(x, m + "3x3", 384, 3, 2), y, F.max_pool2d(x, 3, 2)], 1)
    x = c(c(c(c(x, "6b", 128), "6c", 160), "6d", 160), "6e", 192)
    if variant == "torchvision":  # its values are of no interest, its tensors are
        y = conv(conv(x, "AuxLogits.conv0", 128), "AuxLogits.conv1", 768, 5, pad=2)
        take("AuxLogits.fc.weight", classes, y.shape[1])
        take("AuxLogits.fc.bias", classes)
    m = "Mixed_7a.branch"
    y = conv(conv(x, m + "7x7x3_1", 192), m + "7x7x3_2", 192, (1, 7), pad=(0, 3))
    y = conv(conv(y, m + "7x7x3_3", 192, (7, 1), pad=(3, 0)), m + "7x7x3_4", 192, 3, 2)
    z = conv(conv(x, m + "3x3_1", 192), m + "3x3_2", 320, 3, 2)
    x = torch.cat([z, y, F.max_pool2d(x, 3, 2)], 1)
    assert min(x.shape[2:]) > 1  # or the kinds of pooling below would agree
    x = e(x, "7b", pool)
    x = e(x, "7c", pool if variant == "torchvision" else lambda x: F.max_pool2d(x, 3, 1, 1))
    x = x.mean((2, 3))
    logits = x @ take("fc.weight", classes, x.shape[1]).T + take("fc.bias", classes)
    return {"pool": x, "logits": logits}, tensors


def load(module, rename, tensor):
    """Tensors made up by torchvision's or open_clip's name, loaded into transformers' module."""
    state, tensors = module.state_dict(), {}
    for name, value in state.items():
        if name.endswith(("num_batches_tracked", "position_ids")):
            continue
        theirs, transposed = rename(name)
        shape = tuple(value.shape)[::-1] if transposed else tuple(value.shape)
        tensors[theirs] = tensor(theirs, shape)
        x = torch.from_numpy(tensors[theirs])
        state[name] = x.T if transposed else x
    module.load_state_dict(state)
    return module.eval(), tensors


def pixels(images, mean, std):
    x = (torch.tensor(images) + 1) / 2
    return ((x - torch.tensor(mean)) / torch.tensor(std)).movedim(-1, 1)


def resnet50(images, tensor):
    """transformers' ResNet-50: features, and tensors by torchvision's names."""
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[3, 4, 6, 3], num_labels=10
    )

    def rename(name):
        parts = name.replace("classifier.1", "fc").split(".")
        if parts[0] == "fc":
            return ".".join(parts), False
        norm, leaf = parts[-2] == "normalization", parts[-1]
        if parts[1] == "embedder":
            return ("bn1." if norm else "conv1.") + leaf, False
        _, _, _, stage, _, block, kind, *rest = parts
        if kind == "shortcut":
            layer = "downsample.1" if norm else "downsample.0"
        else:
            layer = f"{'bn' if norm else 'conv'}{int(rest[0]) + 1}"
        return f"layer{int(stage) + 1}.{block}.{layer}.{leaf}", False

    module, tensors = load(transformers.ResNetForImageClassification(config), rename, tensor)
    with torch.no_grad():
        x = pixels(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        pool = module.resnet(x).pooler_output.flatten(1)
        return {"pool": pool, "logits": module(x).logits}, tensors


def clip(activation, images, tensor):
    """transformers' CLIP image encoder: features, and tensors by open_clip's names."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=160,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        hidden_act=activation,
    )
    words = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding": "conv1",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.pre_layrnorm": "ln_pre",
        "vision_model.post_layernorm": "ln_post",
        "vision_model.encoder.layers": "transformer.resblocks",
        "visual_projection.weight": "proj",
        "self_attn.": "attn.",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }

    def rename(name):
        transposed = name == "visual_projection.weight"
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        return "visual." + name, transposed

    module, tensors = load(transformers.CLIPVisionModelWithProjection(config), rename, tensor)
    for i in range(2):  # open_clip has one matrix for q, k and v
        where = f"visual.transformer.resblocks.{i}.attn"
        for kind in ("weight", "bias"):
            together = tensor(
                name := f"{where}.in_proj_{kind}", (384, 128)[: 1 + (kind == "weight")]
            )
            tensors[name] = together
            attention = module.vision_model.encoder.layers[i].self_attn
            for part, value in zip("qkv", np.split(together, 3), strict=True):
                del tensors[f"{where}.{part}_proj.{kind}"]
                getattr(attention, f"{part}_proj").get_parameter(kind).data = torch.from_numpy(
                    value
                )
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    with torch.no_grad():
        embedding = module(pixels(images, mean, std)).image_embeds
    return {"embedding": F.normalize(embedding, dim=-1)}, tensors
