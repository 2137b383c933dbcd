"""The family: what came before and after MRLA, one module an idea, on MRLA's signature where it fits.

Each module that holds layer attentions has a table NAMES, name -> class; here its names become names of
`cifar_resnet(layer_attention=...)` and the other hosts. The family builds on the subject, which knows nothing
of it but those names; neither knows the lab.
"""

from mrla_minimal.family import depth_weights, dynamic, sideways
from mrla_minimal.hosting import FAMILY_ATTENTIONS

FAMILY_ATTENTIONS.update(depth_weights.NAMES | dynamic.NAMES | sideways.NAMES)
