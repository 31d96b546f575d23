//! What the command line asks for.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

pub const USAGE: &str = "volary-load --address HOST:PORT --path /package.Service/Method \
--body FILE [--header NAME=VALUE]... [--concurrency 1] [--connections 1] [--seconds 5] \
[--warmup 1] [--rate CALLS_PER_S] [--timeout-ms MS] [--token OFFSET] [--answers FILE]";

#[derive(Clone)]
pub struct Options {
    pub address: String,
    pub path: String,
    pub body: Bytes,
    pub headers: Vec<(String, String)>,
    pub concurrency: usize,
    pub connections: usize,
    pub span: Duration,
    pub warmup: Duration,
    /// Calls begin at this rate whatever became of those before; 0 is a closed loop.
    pub rate: f64,
    pub timeout: Option<Duration>,
    /// Where in the body the 16 bytes lie that are different in each call, and come back.
    pub token: Option<usize>,
    /// Where to write when each answered call was asked and answered, and by which version.
    pub answers: Option<String>,
}

impl Options {
    pub fn read(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut single: HashMap<String, String> = HashMap::new();
        let mut headers = Vec::new();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .ok_or(format!("{word} is no option"))?;
            let value = words.next().ok_or(format!("--{name} needs a value"))?;
            if name == "header" {
                let (key, text) = value.split_once('=').ok_or("a header is NAME=VALUE")?;
                headers.push((key.to_string(), text.to_string()));
            } else {
                single.insert(name.to_string(), value);
            }
        }
        let mut take = |name: &str| single.remove(name);
        let address = take("address").ok_or("--address is missing")?;
        let path = take("path").ok_or("--path is missing")?;
        let file = take("body").ok_or("--body is missing")?;
        let body = std::fs::read(&file).map_err(|error| format!("{file}: {error}"))?;
        let found = Options {
            address,
            path,
            body: body.into(),
            headers,
            concurrency: number(take("concurrency"), 1.0)? as usize,
            connections: number(take("connections"), 1.0)?.max(1.0) as usize,
            span: Duration::from_secs_f64(number(take("seconds"), 5.0)?),
            warmup: Duration::from_secs_f64(number(take("warmup"), 1.0)?),
            rate: number(take("rate"), 0.0)?,
            timeout: match number(take("timeout-ms"), 0.0)? {
                ms if ms > 0.0 => Some(Duration::from_secs_f64(ms / 1e3)),
                _ => None,
            },
            token: match take("token") {
                None => None,
                given => Some(number(given, 0.0)? as usize),
            },
            answers: take("answers"),
        };
        if let Some(name) = single.keys().next() {
            return Err(format!("--{name} is no option"));
        }
        if found.token.is_some_and(|at| at + 16 > found.body.len()) {
            return Err("the token lies outside of the body".to_string());
        }
        Ok(found)
    }
}

fn number(text: Option<String>, default: f64) -> Result<f64, String> {
    let Some(text) = text else { return Ok(default) };
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("{text} is no number from 0 on")),
    }
}
