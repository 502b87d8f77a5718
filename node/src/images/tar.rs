//! Writes tar archives (ustar, with GNU long names): what image layers and image archives are made of.
//!
//! Times and owners are zero, so the same input always gives the same bytes and the same digest.

use std::io::{self, Read, Write};

/// What a header says about its entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

/// Appends entries to `out`; [`Writer::finish`] writes the end.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out }
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.header(path, Kind::Directory, mode, 0, "")
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.header(path, Kind::Symlink, 0o777, 0, target)
    }

    /// Copies exactly `size` bytes of `data`.
    pub fn file(&mut self, path: &str, mode: u32, size: u64, data: impl Read) -> io::Result<()> {
        self.header(path, Kind::File, mode, size, "")?;
        let copied = io::copy(&mut data.take(size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} became shorter while being read"),
            ));
        }
        self.pad(size)
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
    }

    fn header(&mut self, path: &str, kind: Kind, mode: u32, size: u64, link: &str) -> io::Result<()> {
        for (text, flag) in [(link, b'K'), (path, b'L')] {
            if text.len() > 99 {
                self.out.write_all(&block("././@LongLink", flag, 0o644, text.len() as u64 + 1, ""))?;
                self.out.write_all(text.as_bytes())?;
                self.out.write_all(&[0])?;
                self.pad(text.len() as u64 + 1)?;
            }
        }
        let flag = match kind {
            Kind::File => b'0',
            Kind::Directory => b'5',
            Kind::Symlink => b'2',
        };
        self.out.write_all(&block(path, flag, mode, size, link))
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (512 - size % 512) % 512;
        self.out.write_all(&[0; 512][..rest as usize])
    }
}

/// One 512-byte header. Names are cut to the field; the long-name entry before it carries the rest.
fn block(path: &str, flag: u8, mode: u32, size: u64, link: &str) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8], width: usize| {
        let bytes = &bytes[..bytes.len().min(width)];
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, path.as_bytes(), 100);
    put(100, format!("{mode:07o}").as_bytes(), 7);
    put(108, b"0000000", 7);
    put(116, b"0000000", 7);
    put(124, format!("{size:011o}").as_bytes(), 11);
    put(136, b"00000000000", 11);
    put(148, b"        ", 8);
    put(156, &[flag], 1);
    put(157, link.as_bytes(), 100);
    put(257, b"ustar\x0000", 8);
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block[154] = 0;
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tar_reads_what_is_written() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.tar");
        let long = format!("{}/file", "long".repeat(40));
        let mut tar = Writer::new(std::fs::File::create(&path).expect("create"));
        tar.directory("bin", 0o755).expect("directory");
        tar.file("bin/one", 0o755, 3, &b"one"[..]).expect("file");
        tar.symlink("bin/two", "one").expect("link");
        tar.file(&long, 0o600, 0, io::empty()).expect("long");
        tar.finish().expect("finish");
        let output = std::process::Command::new("tar").arg("tvf").arg(&path).output().expect("tar runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("-rwxr-xr-x 0/0") && text.contains("bin/two -> one") && text.contains(&long), "{text}");
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        assert!(Writer::new(Vec::new()).file("a", 0o644, 5, &b"abc"[..]).is_err());
    }
}
