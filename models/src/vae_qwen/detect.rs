//! The config read off tensor shapes, for files that carry none.

use super::QwenVaeConfig;

impl QwenVaeConfig {
    /// The config of the network whose tensor `name` (diffusers') has the shape `shape(name)`. What latents are scaled
    /// by is not in a file: it is taken to be Qwen-Image's.
    ///
    /// # Errors
    /// What speaks against such a network.
    pub(crate) fn from_shapes(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Result<Self, String> {
        let kernel = |name: &str| match shape(name).as_deref() {
            Some([out, inputs, 3, 3, 3]) => Ok([*out, *inputs]),
            Some(other) => Err(format!("'{name}' has shape {other:?}, not [out, in, 3, 3, 3]")),
            None => Err(format!("it has no '{name}'")),
        };
        let [base_dim, _] = kernel("encoder.conv_in.weight")?;
        let [_, z_dim] = kernel("decoder.conv_in.weight")?;
        let mut config = Self {
            base_dim,
            z_dim,
            dim_mult: Vec::new(),
            num_res_blocks: 0,
            temperal_downsample: Vec::new(),
            ..Self::default()
        };
        if z_dim != config.latents_mean.len() {
            return Err(format!(
                "its latents have {z_dim} channels, and what they are scaled by is known for {} alone",
                config.latents_mean.len()
            ));
        }
        let mut residuals = 0;
        let mut width = 0;
        for number in 0.. {
            let block = format!("encoder.down_blocks.{number}");
            let halved = shape(&format!("{block}.resample.1.weight")).is_some();
            let residual = shape(&format!("{block}.conv1.weight")).is_some();
            if residual {
                [width, _] = kernel(&format!("{block}.conv1.weight"))?;
                residuals += 1;
                continue;
            }
            // A level ends.
            if base_dim == 0 || !width.is_multiple_of(base_dim) {
                return Err(format!("{width} channels before '{block}' are no multiple of {base_dim}"));
            }
            config.dim_mult.push(width / base_dim);
            if config.dim_mult.len() > 1 && config.num_res_blocks != residuals {
                return Err("its levels have different numbers of residual blocks".into());
            }
            (config.num_res_blocks, residuals) = (residuals, 0);
            if !halved {
                break;
            }
            config.temperal_downsample.push(shape(&format!("{block}.time_conv.weight")).is_some());
        }
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes of a network with the published structure and `base_dim` 4.
    fn shapes(name: &str) -> Option<Vec<usize>> {
        let kernel = |out, inputs| Some(vec![out, inputs, 3, 3, 3]);
        let block = name.strip_prefix("encoder.down_blocks.");
        match (name, block) {
            ("encoder.conv_in.weight", _) => kernel(4, 3),
            ("decoder.conv_in.weight", _) => kernel(16, 16),
            (_, Some("0.conv1.weight" | "1.conv1.weight")) => kernel(4, 4),
            (_, Some("3.conv1.weight" | "4.conv1.weight")) => kernel(8, 8),
            (_, Some("6.conv1.weight" | "7.conv1.weight" | "9.conv1.weight" | "10.conv1.weight")) => {
                kernel(16, 16)
            }
            (_, Some("2.resample.1.weight" | "5.resample.1.weight" | "8.resample.1.weight")) => Some(vec![1]),
            (_, Some("5.time_conv.weight" | "8.time_conv.weight")) => Some(vec![1]),
            _ => None,
        }
    }

    #[test]
    fn everything_but_the_scale_of_latents_is_in_the_shapes() {
        let config = QwenVaeConfig::from_shapes(shapes).unwrap();
        assert_eq!(config, QwenVaeConfig { base_dim: 4, ..QwenVaeConfig::default() });
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let replaced = |name: &'static str, shape: Option<Vec<usize>>| {
            QwenVaeConfig::from_shapes(|asked| if asked == name { shape.clone() } else { shapes(asked) })
                .unwrap_err()
        };
        assert!(replaced("encoder.conv_in.weight", None).contains("encoder.conv_in"));
        assert!(replaced("encoder.conv_in.weight", Some(vec![0, 3, 3, 3, 3])).contains("no multiple of 0"));
        assert!(replaced("decoder.conv_in.weight", Some(vec![16, 16, 3, 3])).contains("[16, 16, 3, 3]"));
        assert!(replaced("decoder.conv_in.weight", Some(vec![16, 48, 3, 3, 3])).contains("48 channels"));
        assert!(replaced("encoder.down_blocks.0.conv1.weight", None).contains("contradicts itself"));
        assert!(replaced("encoder.down_blocks.10.conv1.weight", None).contains("different numbers"));
        assert!(
            replaced("encoder.down_blocks.7.conv1.weight", Some(vec![18, 18, 3, 3, 3]))
                .contains("18 channels")
        );
    }
}
