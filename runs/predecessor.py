"""The weights of hermosayhl/DeepUPE_pytorch as ours."""


def convert_predecessor(weights):
    """State dict of hermosayhl/DeepUPE_pytorch (BGR) as ours (RGB).

    Its names become ours; channels are permuted where a photo goes in (splat, guide) and where the affine's rows and
    columns are colours (prediction).
    """
    renames = {
        'coeffs.splat_features.': 'splat.',
        'coeffs.global_features_conv.': 'global_conv.',
        'coeffs.global_features_fc.': 'global_fc.',
        'coeffs.local_features.': 'local.',
        'coeffs.conv_out.': 'predict.',
        'guide.conv1.': 'guide.hidden.',
        'guide.conv2.': 'guide.output.',
        '.bn.': '.norm.',
        '.fc.': '.linear.',
    }
    converted = {}
    for name, value in weights.items():
        for theirs, ours in renames.items():
            name = name.replace(theirs, ours)
        converted[name] = value
    for name in ('splat.0.conv.weight', 'guide.hidden.conv.weight'):
        converted[name] = converted[name].flip(1)
    for name in ('predict.conv.weight', 'predict.conv.bias'):
        value = converted[name]
        affine = value.view(3, 4, -1, *value.shape[1:])[[2, 1, 0]][:, [2, 1, 0, 3]]  # the offset stays last
        converted[name] = affine.reshape(value.shape)
    return converted
