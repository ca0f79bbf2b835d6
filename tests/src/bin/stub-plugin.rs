//! A volume plugin that has one volume, in a folder of its own, and mounts nothing: for tests of those who look for plugins.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;

fn main() {
    let socket = std::env::args().nth(1).expect("the socket's path");
    let _ = std::fs::remove_file(&socket);
    std::fs::create_dir_all("/volumes/of-the-stub").expect("a folder");
    std::fs::write("/volumes/of-the-stub/file", "of the stub\n").expect("a file");
    let listener = UnixListener::bind(&socket).expect("bind");
    for stream in listener.incoming().flatten() {
        let mut reader = BufReader::new(&stream);
        let (mut call, mut length) = (String::new(), 0);
        let _ = reader.read_line(&mut call);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
        }
        let mut body = vec![0; length];
        let _ = reader.read_exact(&mut body);
        let answer = match call.split(' ').nth(1).unwrap_or_default() {
            "/Plugin.Activate" => r#"{"Implements":["VolumeDriver"]}"#,
            "/VolumeDriver.List" => r#"{"Volumes":[{"Name":"of-the-stub"}],"Err":""}"#,
            "/VolumeDriver.Capabilities" => r#"{"Capabilities":{"Scope":"local"}}"#,
            "/VolumeDriver.Get" => r#"{"Volume":{"Name":"of-the-stub"},"Err":""}"#,
            "/VolumeDriver.Mount" | "/VolumeDriver.Path" => r#"{"Mountpoint":"/volumes/of-the-stub","Err":""}"#,
            "/VolumeDriver.Unmount" => r#"{"Err":""}"#,
            _ => r#"{"Err":"no such volume"}"#,
        };
        let _ = write!(&stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    }
}
