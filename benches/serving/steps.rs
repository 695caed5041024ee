//! A network call by batch size, through the command line: what batching can gain at most.

use serde_json::{Value, json};

use crate::Plan;
use crate::server::program;
use crate::spread::{Spread, rounded};

const STEPS: usize = 8;

pub(crate) fn measure(plan: &Plan) -> Value {
    println!("\nA step with guidance (twice as many rows as pictures), milliseconds");
    println!(
        "{:>8} {:>8} {:>10} {:>12} {:>16}",
        "pixels", "pictures", "median", "a picture", "times one alone"
    );
    let folder = plan.folder();
    let timings = folder.path().join("timings.json");
    let batches: &[usize] = if plan.quick { &[1, 4] } else { &[1, 2, 4, 8, 16] };
    let mut rows = Vec::new();
    for side in [64, 128] {
        let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); batches.len()];
        for _ in 0..plan.rounds {
            for (batch, seconds) in batches.iter().zip(&mut seconds) {
                let numbers = [
                    ("count", *batch),
                    ("max-batch", *batch),
                    ("width", side),
                    ("height", side),
                    ("steps", STEPS),
                ];
                let mut command = program();
                command
                    .args(["generate", "--quiet", "--prompt", "1girl", "--cfg", "5", "--seed", "1", "--out"]);
                command.arg(folder.path().join("out")).arg("--timings").arg(&timings);
                for (flag, number) in numbers {
                    command.arg(format!("--{flag}={number}"));
                }
                let output = command.output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let timings: Value = serde_json::from_slice(&std::fs::read(&timings).unwrap()).unwrap();
                // The first call touches weights and buffers for the first time.
                seconds.extend(
                    timings["step_seconds"].as_array().unwrap().iter().skip(1).filter_map(Value::as_f64),
                );
            }
        }
        let alone = Spread::of(seconds[0].iter().copied()).median();
        for (batch, seconds) in batches.iter().zip(seconds) {
            let spread = Spread::of(seconds.iter().map(|seconds| seconds * 1e3));
            let each = spread.median() / *batch as f64;
            let gain = alone * 1e3 / each;
            println!("{side:>8} {batch:>8} {:>10.2} {each:>12.2} {gain:>16.2}", spread.median());
            rows.push(json!({
                "pixels": side, "pictures": batch, "step_ms": spread.json(),
                "ms_a_picture": rounded(each), "gain_over_alone": rounded(gain),
            }));
        }
    }
    rows.into()
}
