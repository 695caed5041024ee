//! What a UNet was trained to predict: not in its tensors' shapes, so it is told by markers, metadata and the
//! scheduler's config.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::weights::Header;

/// What the UNet's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity of Salimans and Ho 2022 (arXiv 2202.00512).
    V,
}

/// How the UNet's output is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// What it means.
    pub kind: PredictionType,
    /// Whether the noise schedule was rescaled to end in pure noise (Lin et al. 2023, arXiv 2305.08891).
    pub zero_terminal_snr: bool,
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            PredictionType::Epsilon => "epsilon",
            PredictionType::V => "v",
        })?;
        if self.zero_terminal_snr { f.write_str(", zero terminal SNR") } else { Ok(()) }
    }
}

/// Told by a single file: marker tensors named `v_pred` and `ztsnr`, or metadata. As in ComfyUI, `ztsnr` counts for
/// velocities only: at its last noise level, where a latent is noise alone, knowing the noise says nothing.
///
/// # Errors
/// The name of a prediction that is neither epsilon nor v.
pub(super) fn of_file(header: &Header) -> Result<Prediction, String> {
    let marked = |marker: &str| header.tensors.keys().any(|name| name.rsplit('.').next() == Some(marker));
    for marker in ["edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"] {
        if header.tensors.contains_key(marker) {
            return Err(format!("'{marker}' (EDM)"));
        }
    }
    let said = ["modelspec.prediction_type", "prediction_type"]
        .into_iter()
        .find_map(|key| header.metadata.get(key).map(String::as_str));
    let kind = if marked("v_pred") { PredictionType::V } else { kind(said)? };
    Ok(Prediction { kind, zero_terminal_snr: kind == PredictionType::V && marked("ztsnr") })
}

/// Told by `scheduler/scheduler_config.json`.
///
/// # Errors
/// The name of a prediction that is neither epsilon nor v.
pub(super) fn of_scheduler(config: &Map<String, Value>) -> Result<Prediction, String> {
    Ok(Prediction {
        kind: kind(config.get("prediction_type").and_then(Value::as_str))?,
        zero_terminal_snr: config.get("rescale_betas_zero_snr") == Some(&Value::Bool(true)),
    })
}

fn kind(said: Option<&str>) -> Result<PredictionType, String> {
    match said {
        None | Some("epsilon" | "eps") => Ok(PredictionType::Epsilon),
        Some("v" | "v_prediction") => Ok(PredictionType::V),
        Some(other) => Err(format!("'{}'", other.chars().take(80).collect::<String>())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schedulers_config_tells_velocities_and_zero_terminal_snr() {
        let of = |config: Value| of_scheduler(config.as_object().unwrap()).unwrap();
        let told = of(json!({"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}));
        assert_eq!(told, Prediction { kind: PredictionType::V, zero_terminal_snr: true });
        let told = of(json!({"rescale_betas_zero_snr": false}));
        assert_eq!(told, Prediction { kind: PredictionType::Epsilon, zero_terminal_snr: false });
    }
}
