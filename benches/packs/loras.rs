//! What a LoRA costs a single picture: the first time, again, and merged into the weights. Each picture is asked for
//! alone, of a server that has drawn the like before, so that only the LoRA is new.

use serde_json::{Value, json};

use crate::Plan;
use crate::packs::drawn;
use crate::probe::Counters;
use crate::spread::Spread;
use crate::subject::Subject;

/// Most packs that are drawn until merged weights are there.
const TRIES: usize = 8;

/// All numbers.
pub(crate) async fn measure(plan: &Plan, subject: &Subject) -> Value {
    let folder = tempfile::TempDir::new().unwrap();
    let count = plan.rounds + 1;
    let fresh: Vec<String> = (0..count).map(|index| format!("fresh_{index}")).collect();
    let server = subject.serve(plan, folder.path(), &fresh);
    // Loads the model and the ControlNet, encodes the prompt, finds the edges.
    drawn(&server, &subject.request(plan, 0, None)).await;

    let names = ["none", "first", "second", "merged"];
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for lora in &fresh {
        for (name, seconds) in names[..3].iter().zip(&mut seconds) {
            let lora = (*name != "none").then_some(lora.as_str());
            let before = Counters::of(&server).await;
            seconds.push(drawn(&server, &subject.request(plan, 0, lora)).await);
            let merged = Counters::of(&server).await.lora_steps_since(&before, "merged");
            assert_eq!(merged, 0.0, "a single picture was not meant to have its LoRA merged");
        }
    }
    // Pictures that share a LoRA for long enough have it merged; then one picture finds it so.
    let lora = fresh[0].as_str();
    for _ in 0..TRIES {
        let mut pictures = subject.request(plan, 0, Some(lora));
        pictures["count"] = json!(32usize.div_ceil(plan.steps));
        drawn(&server, &pictures).await;
        let before = Counters::of(&server).await;
        drawn(&server, &subject.request(plan, 0, Some(lora))).await;
        if Counters::of(&server).await.lora_steps_since(&before, "adapters") == 0.0 {
            break;
        }
    }
    for _ in 0..count {
        let before = Counters::of(&server).await;
        let took = drawn(&server, &subject.request(plan, 0, Some(lora))).await;
        if Counters::of(&server).await.lora_steps_since(&before, "adapters") == 0.0 {
            seconds[3].push(took);
        }
    }

    println!("\nA picture of {} steps with Canny, alone, by what its LoRA is: seconds", plan.steps);
    println!("{:>10} {:>8} {:>8} {:>8} {:>14}", "", "least", "median", "most", "over none");
    let spreads: Vec<Spread> = seconds.into_iter().map(Spread::of).collect();
    let none = spreads[0].median();
    let mut report = serde_json::Map::new();
    for (name, spread) in names.iter().zip(&spreads) {
        println!(
            "{name:>10} {:>8.3} {:>8.3} {:>8.3} {:>13.1}%",
            spread.at(0.0),
            spread.median(),
            spread.at(1.0),
            100.0 * (spread.median() / none - 1.0)
        );
        report.insert(format!("{name}_seconds"), spread.json());
    }
    report.insert("files_in_page_cache".into(), json!(true));
    report.into()
}
