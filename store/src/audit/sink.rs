//! The files of the audit log: the newest one is appended to; when it is full they all move up by one, and the last goes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::AuditOptions;

/// Where lines go.
pub(super) trait Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<()>;
}

pub(super) struct Files {
    options: AuditOptions,
    /// `None` after an error: opened anew with the next line.
    file: Option<File>,
    bytes: u64,
}

impl Files {
    pub fn open(options: &AuditOptions) -> io::Result<Self> {
        let mut files = Self { options: options.clone(), file: None, bytes: 0 };
        files.reopen()?;
        Ok(files)
    }

    fn reopen(&mut self) -> io::Result<&mut File> {
        // Who wrote what is nobody else's business.
        let file = File::options().create(true).append(true).mode(0o600).open(&self.options.file)?;
        self.bytes = file.metadata()?.len();
        Ok(self.file.insert(file))
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let path = &self.options.file;
        if self.options.max_files < 2 {
            return fs::remove_file(path);
        }
        for number in (1..self.options.max_files - 1).rev() {
            match fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                moved => moved?,
            }
        }
        fs::rename(path, numbered(path, 1))
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.options.max_bytes {
            self.rotate()?;
            self.reopen()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.reopen()?,
        };
        file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

impl Sink for Files {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.append(line);
        if written.is_err() {
            self.file = None;
        }
        written
    }
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_move_up_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        let options = AuditOptions { file: file.clone(), max_bytes: 20, max_files: 3 };
        let mut files = Files::open(&options).unwrap();
        for number in 0..10 {
            if number == 5 {
                files = Files::open(&options).unwrap(); // goes on where it was
            }
            files.write(format!("line {number:03}\n").as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&file), "line 008\nline 009\n");
        assert_eq!(read(&numbered(&file, 1)), "line 006\nline 007\n");
        assert_eq!(read(&numbered(&file, 2)), "line 004\nline 005\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        // One line may be larger than a file is to be.
        files.write(&[b'x'; 50]).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().len(), 50);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn one_file_alone_begins_anew_and_a_lost_one_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        let mut files = Files::open(&AuditOptions { file: file.clone(), max_bytes: 5, max_files: 1 }).unwrap();
        for line in ["abc\n", "def\n"] {
            files.write(line.as_bytes()).unwrap();
        }
        assert_eq!(
            (fs::read_to_string(&file).unwrap(), fs::read_dir(dir.path()).unwrap().count()),
            ("def\n".to_owned(), 1)
        );
        fs::remove_file(&file).unwrap();
        assert!(files.write(b"ghi\n").is_err(), "there was nothing to put aside");
        files.write(b"jkl\n").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "jkl\n");
    }
}
