//! Reads single values out of the Prometheus text format.

/// The value of the first series of `name` whose labels hold all of `labels`.
pub fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, number) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let all = labels.iter().all(|(key, value)| found.contains(&format!("{key}=\"{value}\"")));
        if all { number.split_whitespace().next()?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_name_and_label() {
        let text =
            "# HELP a x\n# TYPE a gauge\na_more 9\na{role=\"home\",x=\"1\"} 1\na{role=\"seat\"} 3\nb 0.5\n";
        assert_eq!(value(text, "a", &[("role", "seat")]), Some(3.0));
        assert_eq!(value(text, "b", &[]), Some(0.5));
        assert_eq!(value(text, "c", &[]), None);
    }
}
