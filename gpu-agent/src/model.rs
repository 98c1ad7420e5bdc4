//! Short model names, by which orders ask for GPUs. Pure.
//!
//! The driver's product name mixes vendor, model, form factor and memory (`NVIDIA A100-SXM4-80GB`). The model is:
//!
//! 1. the name without the vendor (`NVIDIA`) and brand words (`Tesla`, `Quadro`, `GeForce`, `Graphics`, `Device`);
//! 2. cut at the first word or hyphenated part that names no model: a form factor (`SXM4`, `PCIe`, `NVL`, `HBM3`,
//!    `MIG`, ...), or a memory size (`80GB`);
//! 3. its words joined by hyphens: `RTX 6000 Ada Generation` becomes `RTX-6000-Ada`.
//!
//! Memory is no part of the model: it is a field of its own, and orders ask for it as such.

/// Words before the model.
const BRANDS: [&str; 6] = ["NVIDIA", "Tesla", "Quadro", "GeForce", "Graphics", "Device"];

/// Words after the model.
const SUFFIXES: [&str; 12] = [
    "PCIe",
    "NVL",
    "HBM2",
    "HBM2e",
    "HBM3",
    "HBM3e",
    "MIG",
    "CNX",
    "Generation",
    "Edition",
    "Server",
    "Workstation",
];

/// Longest model name that the API takes.
const MAX_LENGTH: usize = 63;

/// The model behind a product name; `unknown` when nothing is left.
#[must_use]
pub fn from_product_name(name: &str) -> String {
    let words =
        name.split_whitespace().skip_while(|word| BRANDS.iter().any(|b| b.eq_ignore_ascii_case(word)));
    let parts = words.flat_map(|word| word.split('-')).filter(|part| !part.is_empty());
    let mut model = String::new();
    for part in parts.take_while(|part| !is_suffix(part)) {
        let part: String = part.chars().filter(char::is_ascii_alphanumeric).collect();
        if part.is_empty() {
            continue;
        }
        if model.len() + part.len() + 1 > MAX_LENGTH {
            break;
        }
        if !model.is_empty() {
            model.push('-');
        }
        model.push_str(&part);
    }
    if model.is_empty() { "unknown".to_owned() } else { model }
}

fn is_suffix(part: &str) -> bool {
    let numbered = |prefix: &str| {
        part.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
            && part[prefix.len()..].bytes().all(|b| b.is_ascii_digit())
    };
    let is_memory = || {
        let digits = ["GB", "gb", "G"].iter().find_map(|unit| part.strip_suffix(unit));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    };
    SUFFIXES.iter().any(|s| s.eq_ignore_ascii_case(part)) || numbered("SXM") || is_memory()
}

#[cfg(test)]
mod tests {
    use super::from_product_name;

    #[test]
    fn names_of_real_cards() {
        for (name, model) in [
            ("NVIDIA H100 80GB HBM3", "H100"),
            ("NVIDIA H100 PCIe", "H100"),
            ("NVIDIA H100 NVL", "H100"),
            ("NVIDIA H200", "H200"),
            ("NVIDIA H200 NVL", "H200"),
            ("NVIDIA GH200 480GB", "GH200"),
            ("NVIDIA GH200 144G HBM3e", "GH200"),
            ("NVIDIA B200", "B200"),
            ("NVIDIA B300 SXM6 AC", "B300"),
            ("NVIDIA GB200", "GB200"),
            ("NVIDIA A100-SXM4-80GB", "A100"),
            ("NVIDIA A100-SXM4-40GB", "A100"),
            ("A100-SXM4-40GB", "A100"),
            ("NVIDIA A100 80GB PCIe", "A100"),
            ("NVIDIA A100-PCIE-40GB", "A100"),
            ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "A100"),
            ("NVIDIA L40S", "L40S"),
            ("NVIDIA L4", "L4"),
            ("NVIDIA A10G", "A10G"),
            ("Tesla T4", "T4"),
            ("Tesla V100-SXM2-16GB", "V100"),
            ("NVIDIA GeForce RTX 4090", "RTX-4090"),
            ("NVIDIA GeForce RTX 3060 Ti", "RTX-3060-Ti"),
            ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
            ("NVIDIA RTX A6000", "RTX-A6000"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-Blackwell"),
            ("Quadro RTX 8000", "RTX-8000"),
        ] {
            assert_eq!(from_product_name(name), model, "{name}");
        }
    }

    #[test]
    fn odd_names_give_something_that_the_api_takes() {
        assert_eq!(from_product_name(""), "unknown");
        assert_eq!(from_product_name("NVIDIA Graphics Device"), "unknown");
        assert_eq!(from_product_name("NVIDIA Xß/9 \u{1f600}"), "X9");
        assert!(from_product_name(&"NVIDIA AB12 ".repeat(40)).len() <= 63);
        assert_eq!(from_product_name("NVIDIA é"), "unknown");
    }
}
