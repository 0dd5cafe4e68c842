"""Class paths that moved. A signature hashes the first spelling; a configuration may use either."""

_MOVED = {  # present → first, both below capsule_sweeps
    "networks.backbones.ResNet": "backbone.ResNet",
    "networks.backbones.Simple": "backbone.Simple",
    "networks.baselines.CNN": "baselines.CNN",
    "networks.baselines.ResNet18": "baselines.ResNet18",
    "networks.capsnet.CapsNet": "model.CapsNet",
    "routing.attention.Attention": "routing.Attention",
    "routing.dynamic.Dynamic": "dynamic.Dynamic",
    "routing.em.EM": "em.EM",
    "routing.inverted_attention.InvertedAttention": "routing.InvertedAttention",
    "routing.self_routing.SelfRouting": "self_routing.SelfRouting",
    "routing.uniform.Uniform": "routing.Uniform",
}
FIRST_SPELLING = {f"capsule_sweeps.{present}": f"capsule_sweeps.{first}" for present, first in _MOVED.items()}
PRESENT_SPELLING = {first: present for present, first in FIRST_SPELLING.items()}
