//! What the global flags and `ETCDCTL_` variables mean: where to connect, as whom, how long to wait, how to print.

use std::time::Duration;

use super::grammar::Globals;
use super::print::Format;
use super::{Done, Failure, go, password};

#[derive(Clone, Debug)]
pub struct Settings {
    /// Never empty.
    pub endpoints: Vec<String>,
    pub tls: TlsFiles,
    pub user: Option<(String, String)>,
    pub dial_timeout: Duration,
    pub command_timeout: Duration,
    /// Whether the user set it: some commands wait for ever otherwise.
    pub command_timeout_given: bool,
    pub keepalive_time: Duration,
    pub keepalive_timeout: Duration,
    pub format: Format,
    pub hex: bool,
    pub debug: bool,
}

#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    pub authorities: Option<String>,
    pub certificate: Option<String>,
    pub key: Option<String>,
    /// Plain text where the endpoint has no scheme and no file is given.
    pub insecure_transport: bool,
    pub skip_verify: bool,
}

impl TlsFiles {
    pub fn any(&self) -> bool {
        self.authorities.is_some() || self.certificate.is_some() || self.key.is_some()
    }
}

/// Variables of this program that are no flags: which API, and what `watch` reads itself.
const OTHER_VARIABLES: [&str; 3] = ["ETCDCTL_API", "ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"];

impl Globals {
    /// Takes over variables.
    ///
    /// # Errors
    /// A flag that is also a variable: one of them is not meant. Another API than 3.
    pub fn with_variables(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self, Failure> {
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix("ETCDCTL_") else { continue };
            if value.is_empty() {
                continue;
            }
            if variable == "ETCDCTL_API" && value != "3" {
                return Err(Failure::bad_args(format!("ETCDCTL_API={value} is not supported, only 3 is")));
            }
            if OTHER_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            let Some(flag) = self.flag(&name.to_lowercase().replace('_', "-")) else {
                eprintln!("warning: unrecognized environment variable {variable}");
                continue;
            };
            if flag.is_some() {
                let name = name.to_lowercase().replace('_', "-");
                return Err(Failure::error(format!(
                    "conflicting environment variable {variable} is shadowed by the command-line flag --{name}: unset one"
                )));
            }
            *flag = Some(value);
        }
        Ok(self)
    }

    fn flag(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "endpoints" => &mut self.endpoints,
            "cacert" => &mut self.cacert,
            "cert" => &mut self.cert,
            "key" => &mut self.key,
            "insecure-transport" => &mut self.insecure_transport,
            "insecure-skip-tls-verify" => &mut self.insecure_skip_tls_verify,
            "user" => &mut self.user,
            "password" => &mut self.password,
            "dial-timeout" => &mut self.dial_timeout,
            "command-timeout" => &mut self.command_timeout,
            "keepalive-time" => &mut self.keepalive_time,
            "keepalive-timeout" => &mut self.keepalive_timeout,
            "write-out" => &mut self.write_out,
            "hex" => &mut self.hex,
            "debug" => &mut self.debug,
            "discovery-srv" => &mut self.discovery_srv,
            "discovery-srv-name" => &mut self.discovery_srv_name,
            "insecure-discovery" => &mut self.insecure_discovery,
            _ => return None,
        })
    }

    /// # Errors
    /// The first flag that is wrong, in the words and with the exit code of etcdctl.
    pub fn settings(self) -> Result<Settings, Failure> {
        if self.discovery_srv.as_ref().is_some_and(|domain| !domain.is_empty()) {
            return Err(Failure::bad_feature("--discovery-srv is not supported; name the members with --endpoints"));
        }
        let endpoints: Vec<String> = match &self.endpoints {
            None => vec!["127.0.0.1:2379".to_owned()],
            Some(text) => text.split(',').map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect(),
        };
        if endpoints.is_empty() {
            return Err(Failure::bad_connection("etcdclient: no available endpoints"));
        }
        let tls = TlsFiles {
            authorities: file("cacert", self.cacert)?,
            certificate: file("cert", self.cert)?,
            key: file("key", self.key)?,
            insecure_transport: switch("insecure-transport", self.insecure_transport.as_deref(), true)?,
            skip_verify: switch("insecure-skip-tls-verify", self.insecure_skip_tls_verify.as_deref(), false)?,
        };
        Ok(Settings {
            endpoints,
            tls,
            dial_timeout: time("dial-timeout", self.dial_timeout.as_deref(), 2)?,
            command_timeout_given: self.command_timeout.is_some(),
            command_timeout: time("command-timeout", self.command_timeout.as_deref(), 5)?,
            keepalive_time: time("keepalive-time", self.keepalive_time.as_deref(), 2)?,
            keepalive_timeout: time("keepalive-timeout", self.keepalive_timeout.as_deref(), 6)?,
            hex: switch("hex", self.hex.as_deref(), false)?,
            debug: switch("debug", self.debug.as_deref(), false)?,
            format: Format::parse(self.write_out.as_deref().unwrap_or("simple"))?,
            user: user(self.user.as_deref(), self.password.as_deref(), "Password: ")?,
        })
    }
}

fn wrong(value: &str, flag: &str, why: &str) -> Failure {
    Failure::error(format!("invalid argument {} for \"--{flag}\" flag: {why}", go::quote(value.as_bytes())))
}

fn file(flag: &str, path: Option<String>) -> Result<Option<String>, Failure> {
    match path {
        Some(path) if path.is_empty() => Err(Failure::bad_args(format!("empty string is passed to --{flag} option"))),
        path => Ok(path),
    }
}

pub fn switch(flag: &str, value: Option<&str>, default: bool) -> Result<bool, Failure> {
    value.map_or(Ok(default), |value| go::switch(value).map_err(|why| wrong(value, flag, &why)))
}

fn time(flag: &str, value: Option<&str>, seconds: u64) -> Result<Duration, Failure> {
    value.map_or(Ok(Duration::from_secs(seconds)), |value| go::duration(value).map_err(|why| wrong(value, flag, &why)))
}

/// Name and password, the latter asked for if it is not given.
pub fn user(user: Option<&str>, given: Option<&str>, prompt: &str) -> Result<Option<(String, String)>, Failure> {
    let Some(user) = user.filter(|user| !user.is_empty()) else { return Ok(None) };
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return Ok(Some((user.to_owned(), given.to_owned())));
    }
    if let Some((name, word)) = user.split_once(':') {
        return Ok(Some((name.to_owned(), word.to_owned())));
    }
    let word = password::ask(prompt).map_err(|error| Failure::error(error.to_string()))?;
    Ok(Some((user.to_owned(), word)))
}

impl Settings {
    /// What `--debug` tells of them; never the password.
    pub fn tell(&self) -> Done {
        if self.debug {
            eprintln!("ETCDCTL_ENDPOINTS={}", self.endpoints.join(","));
            eprintln!("ETCDCTL_COMMAND_TIMEOUT={}", go::time(self.command_timeout));
            eprintln!("ETCDCTL_DIAL_TIMEOUT={}", go::time(self.dial_timeout));
            eprintln!("ETCDCTL_USER={}", self.user.as_ref().map_or("", |(name, _)| name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_stand_for_flags_but_never_beside_them() {
        let set =
            variables(&[("ETCDCTL_ENDPOINTS", "a:1, b:2"), ("ETCDCTL_API", "3"), ("ETCDCTL_HEX", ""), ("PATH", "x")]);
        let settings = Globals::default().with_variables(set.clone()).unwrap().settings().unwrap();
        assert_eq!((settings.endpoints, settings.hex), (vec!["a:1".to_owned(), "b:2".to_owned()], false));
        let given = Globals { endpoints: Some("c:3".to_owned()), ..Globals::default() };
        assert!(given.with_variables(set).unwrap_err().text.contains("shadowed by the command-line flag --endpoints"));
        assert_eq!(Globals::default().with_variables(variables(&[("ETCDCTL_API", "2")])).unwrap_err().code, 128);
    }

    #[test]
    fn wrong_flags_are_refused_in_etcdctls_words() {
        let text = |text: &str| Some(text.to_owned());
        for (globals, code, words) in [
            (Globals { endpoints: text(""), ..Globals::default() }, 2, "etcdclient: no available endpoints"),
            (Globals { cert: text(""), ..Globals::default() }, 128, "empty string is passed to --cert option"),
            (Globals { write_out: text("yaml"), ..Globals::default() }, 4, "unsupported output format"),
            (
                Globals { dial_timeout: text("x"), ..Globals::default() },
                1,
                "invalid argument \"x\" for \"--dial-timeout\" flag: time: invalid duration \"x\"",
            ),
        ] {
            let failure = globals.settings().unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (code, words));
        }
        let given = Globals { user: text("a:b:c"), ..Globals::default() }.settings().unwrap();
        assert_eq!(given.user, Some(("a".to_owned(), "b:c".to_owned())));
    }
}
